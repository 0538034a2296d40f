//! The tunnel between two nodes on loopback: what TCP means must survive it.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use byway::{
    Config, Identity, Node, PeerAddr, PeerId,
    net::{Net, os::Os},
    tunnel::{Access, Listener, MAX_WAITING_KNOCKS, Tunnel, TunnelError},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

const SOON: Duration = Duration::from_secs(5);

#[tokio::test]
async fn each_direction_ends_by_itself() {
    let ends = Ends::start().await;
    let (mut near, mut far) = ends.session().await;
    near.write_all(b"question").await.unwrap();
    near.shutdown().await.unwrap();
    let mut asked = Vec::new();
    far.read_to_end(&mut asked).await.unwrap();
    assert_eq!(asked, b"question");
    far.write_all(b"answer").await.unwrap();
    drop(far);
    let mut answered = Vec::new();
    near.read_to_end(&mut answered).await.unwrap();
    assert_eq!(answered, b"answer");
}

#[tokio::test]
async fn a_reset_of_either_side_resets_the_other() {
    let ends = Ends::start().await;
    for reset_near in [true, false] {
        let (near, far) = ends.session().await;
        let (reset, mut other) = if reset_near { (near, far) } else { (far, near) };
        reset.set_zero_linger().unwrap();
        drop(reset);
        let read = timeout(SOON, other.read(&mut [0; 8])).await.unwrap();
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset, "near: {reset_near}");
    }
}

#[tokio::test]
async fn a_lost_connection_is_a_reset_and_never_an_end_of_file() {
    let ends = Ends::start().await;
    let (mut near, mut far) = ends.session().await;
    near.write_all(b"x").await.unwrap();
    far.read_exact(&mut [0]).await.unwrap();
    ends.far.node.close().await;
    for side in [&mut near, &mut far] {
        let read = timeout(SOON, side.read(&mut [0; 8])).await.unwrap();
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn many_sessions_at_once_keep_their_bytes_apart() {
    const SESSIONS: usize = 60;
    let ends = Arc::new(Ends::start().await);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..SESSIONS {
        let ends = Arc::clone(&ends);
        tasks.spawn(async move {
            let (near, far) = ends.session().await;
            let ((mut near_in, mut near_out), (mut far_in, mut far_out)) = (near.into_split(), far.into_split());
            let sent = vec![number as u8; 100_000 + number];
            let (mut there, mut back) = (Vec::new(), Vec::new());
            let send = async {
                near_out.write_all(&sent).await.unwrap();
                near_out.shutdown().await.unwrap();
            };
            let echo = async {
                far_in.read_to_end(&mut there).await.unwrap();
                far_out.write_all(&there).await.unwrap();
                far_out.shutdown().await.unwrap();
            };
            let receive = async { near_in.read_to_end(&mut back).await.unwrap() };
            tokio::join!(send, echo, receive);
            assert!(back == sent);
        });
    }
    let all = async {
        while let Some(done) = tasks.join_next().await {
            done.unwrap()
        }
    };
    timeout(SOON * 4, all).await.unwrap();
}

#[tokio::test]
async fn refusals_say_why() {
    let (near, far) = connected().await;
    let peer = far.node.id();
    let dial = |name: &'static str, secret| near.tunnel.dial(peer, name, secret);
    assert_eq!(dial("web", None).await.unwrap_err(), TunnelError::NoSuchService("web".into()));
    assert_eq!(dial("a b", None).await.unwrap_err(), TunnelError::Name("a b".into()));
    let own = near.node.id();
    assert_eq!(near.tunnel.dial(own, "web", None).await.unwrap_err(), TunnelError::Absent(own));

    let secret = [7; 16];
    let granted = Access::Granted(Arc::new(move |_, brought| brought == Some(secret)));
    let mut listener = far.tunnel.listen("web", granted).unwrap();
    assert!(far.tunnel.listen("web", Access::Anyone).is_err());
    assert_eq!(dial("web", None).await.unwrap_err(), TunnelError::NotGranted("web".into()));
    assert_eq!(dial("web", Some([8; 16])).await.unwrap_err(), TunnelError::NotGranted("web".into()));
    near.tunnel.knock(peer, "web", Some(secret)).await.unwrap();

    let turned_away = async { listener.knocked().await.unwrap().turn_away("it sleeps\u{1b}[2J").await };
    let (error, ()) = tokio::join!(dial("web", Some(secret)), turned_away);
    let detail = "it sleeps[2J".to_owned();
    assert_eq!(error.unwrap_err(), TunnelError::Unavailable { service: "web".into(), detail });
    drop(listener);
    assert_eq!(dial("web", Some(secret)).await.unwrap_err(), TunnelError::NoSuchService("web".into()));
}

#[tokio::test]
async fn a_listener_that_takes_nobody_makes_the_next_peer_busy() {
    let (near, far) = connected().await;
    let _listener = far.tunnel.listen("web", Access::Anyone).unwrap();
    let busy = Arc::new(AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..MAX_WAITING_KNOCKS + 3 {
        let (tunnel, peer, busy) = (near.tunnel.clone(), far.node.id(), Arc::clone(&busy));
        tasks.spawn(async move {
            if let Err(TunnelError::Busy(_)) = tunnel.dial(peer, "web", None).await {
                busy.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let counted = async {
        while busy.load(Ordering::Relaxed) < 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, counted).await.unwrap();
    assert_eq!(busy.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn peers_that_say_nothing_take_nobodys_place() {
    let (near, far) = connected().await;
    let _listener = far.tunnel.listen("web", Access::Anyone).unwrap();
    // A node that speaks the protocol's name and then says nothing on 80 streams.
    let silent = node().await;
    let peers = silent.register(byway::Protocol::new(byway::tunnel::PROTOCOL, 1..=1)).unwrap();
    silent.dial(PeerAddr::new(far.node.id(), far.node.addrs())).await.unwrap();
    let mut streams = Vec::new();
    for _ in 0..80 {
        streams.push(peers.open(far.node.id()).await.unwrap());
    }
    timeout(SOON, near.tunnel.knock(far.node.id(), "web", None)).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_program_that_panics_over_a_ticket_costs_the_peer_that_session_and_no_other() {
    let (near, far) = connected().await;
    let panics = |_: PeerId, _: Option<[u8; 16]>| -> bool { panic!("the list of friends is lost") };
    let _faulty = far.tunnel.listen("faulty", Access::Granted(Arc::new(panics))).unwrap();
    let _sound = far.tunnel.listen("sound", Access::Anyone).unwrap();
    for _ in 0..130 {
        let refused = timeout(SOON, near.tunnel.knock(far.node.id(), "faulty", None)).await.unwrap();
        assert!(refused.is_err());
    }
    assert_eq!(timeout(SOON, near.tunnel.knock(far.node.id(), "sound", None)).await.unwrap(), Ok(()));
}

/// A node and its tunnel.
struct End {
    node: Node,
    tunnel: Tunnel,
}

/// Two connected nodes; `far` serves under "tcp" whatever listens at `target`.
struct Ends {
    near: End,
    far: End,
    target: TcpListener,
    _serving: tokio::task::JoinHandle<()>,
}

async fn node() -> Node {
    Node::bind(Config::new(Identity::generate()).listen(([127, 0, 0, 1], 0).into())).await.unwrap()
}

async fn connected() -> (End, End) {
    let (near, far) = (node().await, node().await);
    let tunnels = (Tunnel::new(&near).unwrap(), Tunnel::new(&far).unwrap());
    near.dial(PeerAddr::new(far.id(), far.addrs())).await.unwrap();
    (End { node: near, tunnel: tunnels.0 }, End { node: far, tunnel: tunnels.1 })
}

impl Ends {
    async fn start() -> Self {
        let (near, far) = connected().await;
        let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listener = far.tunnel.listen("tcp", Access::Anyone).unwrap();
        let serving = tokio::spawn(serve(far.tunnel.clone(), listener, target.local_addr().unwrap()));
        Ends { near, far, target, _serving: serving }
    }

    /// A TCP connection through the tunnel, as its two ends see it.
    async fn session(&self) -> (TcpStream, TcpStream) {
        // Whoever connects next to `target` must be this session's, so that sessions are opened one at a time.
        static ONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let _one = ONE.lock().await;
        let stream = self.near.tunnel.dial(self.far.node.id(), "tcp", None);
        let (stream, accepted) = tokio::join!(stream, self.target.accept());
        let (inner, outer) = pair().await;
        let (tunnel, stream) = (self.near.tunnel.clone(), stream.unwrap());
        tokio::spawn(async move { tunnel.forward(stream, inner).await });
        (outer, accepted.unwrap().0)
    }
}

/// A TCP connection of which one end is the tunnel's and the other the test's.
async fn pair() -> (Box<dyn byway::net::TcpStream>, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (inner, outer) = tokio::join!(Os.connect_tcp(listener.local_addr().unwrap()), listener.accept());
    (inner.unwrap(), outer.unwrap().0)
}

async fn serve(tunnel: Tunnel, mut listener: Listener, target: SocketAddr) {
    while let Some(session) = listener.accept().await {
        let tcp = Os.connect_tcp(target).await.unwrap();
        let tunnel = tunnel.clone();
        tokio::spawn(async move { tunnel.forward(session.stream, tcp).await });
    }
}
