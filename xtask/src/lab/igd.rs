//! A UPnP gateway of the lab's own, for what no real one can be told to do: it knows permanent leases only, or tells no external
//! address, or it is none at all but a neighbour who says so.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    process::Command,
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    Stop,
    lab::{
        Lab, Outcome, Scenario,
        gateway::{self, MAP_LIMIT},
        nat::Nat,
        network::Plan,
        node::Node,
        process::{self, Service},
        traffic::{self, say},
    },
};

/// Where searches go (UPnP Device Architecture 1.1 §1.3.2).
const SEARCHED: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 255, 255, 250), 1_900);
/// Where the description is and requests go.
const PORT: u16 = 5_000;
/// The most bytes of a request that are read.
const MAX_REQUEST: u64 = 16 * 1024;
/// How long a client may take to send its request.
const REQUEST_LIMIT: Duration = Duration::from_secs(2);
/// How long the neighbour's answers are given to be believed: two searches.
const BELIEF_WATCH: Duration = Duration::from_secs(10);
/// The neighbour, and what it boasts of.
const NEIGHBOUR: &str = "10.1.0.3";
const BOASTED: &str = "11.6.6.6";

/// What the device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// The gateway itself; leases that end are refused (error 725).
    Permanent,
    /// The gateway itself; it maps, but does not say where.
    Mute,
    /// A neighbour of the gateway that claims to do what it is asked.
    Impostor,
}

/// A gateway that knows permanent leases only; one that tells no external address; one behind a carrier's NAT; a neighbour that plays the gateway, alone and beside a real one.
pub(crate) fn scenarios() -> Vec<Scenario> {
    let scenario = |name: &str, run: fn(&Lab) -> Result<Outcome, Stop>| Scenario {
        name: "gateway",
        a: name.to_owned(),
        b: String::new(),
        plan: Plan::default(),
        breaks: false,
        run: Box::new(run),
    };
    vec![
        scenario("upnp-permanent", permanent),
        scenario("upnp-mute", mute),
        Scenario { plan: Plan { carrier: [true, false], ..Plan::default() }, ..scenario("upnp-carrier", carrier) },
        scenario("upnp-impostor", |lab| impostor(lab, false)),
        scenario("upnp-impostor-beside", |lab| impostor(lab, true)),
    ]
}

fn permanent(lab: &Lab) -> Result<Outcome, Stop> {
    let router = lab.network.router("ra");
    router.load(&Nat { has_gateway: true, ..Nat::default() })?;
    let mut igd = start(lab, "ra", &["10.1.0.1", "permanent", &router.outer.to_string()])?;
    let (node, _) = Node::alone(lab, "ha")?;
    let (inner, host) = (node.port()?, lab.network.host("ha"));
    let (refused, took) = process::timed(|| igd.event(MAP_LIMIT, "refused", |_| true));
    let refused = refused?;
    let added = igd.event(MAP_LIMIT, "added", |_| true)?;
    if refused["lease"] == 0 || added["lease"] != 0 {
        return Err(Stop::Failed(format!("refused {refused}, then added {added}: the wrong leases")));
    }
    let outer = gateway::mapped_port(lab, inner)?;
    let outer = outer.ok_or_else(|| Stop::Failed(format!("no rule leads to the node's port {inner}")))?;
    gateway::watch(host, inner)?;
    if !gateway::arrives(lab, outer)? {
        return Err(Stop::Failed(format!("a packet to the mapped port {outer} does not arrive at port {inner}")));
    }
    drop(node);
    if gateway::arrives(lab, outer)? {
        return Err(Stop::Failed(format!("the node is closed, but its lease for ever of port {outer} is not removed")));
    }
    let note = format!("a lease of {} s refused, one for ever taken, removed with the node", refused["lease"]);
    Ok(Outcome { took: Some(took), note, ..Outcome::default() })
}

/// A mapping whose external address is not told is of no use, and is removed at once: nobody would do it later.
fn mute(lab: &Lab) -> Result<Outcome, Stop> {
    lab.network.router("ra").load(&Nat { has_gateway: true, ..Nat::default() })?;
    let mut igd = start(lab, "ra", &["10.1.0.1", "mute", BOASTED])?;
    let (node, _) = Node::alone(lab, "ha")?;
    let added = igd.event(MAP_LIMIT, "added", |_| true)?;
    igd.event(MAP_LIMIT, "removed", |removed| removed["external"] == added["external"])?;
    let left = gateway::mapped_port(lab, node.port()?)?;
    if let Some(outer) = left {
        return Err(Stop::Failed(format!("port {outer} is still mapped")));
    }
    let status = node.status()?;
    if !status["mappings"][0]["external"].is_null() {
        return Err(Stop::Failed(format!(
            "a mapping is told that nobody knows the address of: {}",
            status["mappings"]
        )));
    }
    Ok(Outcome { note: "mapped, and removed again".into(), ..Outcome::default() })
}

/// A gateway that maps a port of its own, though a carrier's NAT stands before it: the node must see that this helps nobody.
fn carrier(lab: &Lab) -> Result<Outcome, Stop> {
    let router = lab.network.router("ra");
    router.load(&Nat { has_gateway: true, ..Nat::default() })?;
    let mut igd = start(lab, "ra", &["10.1.0.1", "permanent", &router.outer.to_string()])?;
    let (_relay, address) = Node::relay(lab)?;
    let (node, _) = Node::serve(lab, "ha", &address)?;
    igd.event(MAP_LIMIT, "added", |_| true)?;
    let judged = || -> Result<Option<()>, Stop> {
        let status = node.status()?;
        let verdicts = [&status["nat"]["families"][0]["carrier"], &status["mappings"][0]["carrier"]];
        Ok((verdicts == [&json!(true); 2]).then_some(()))
    };
    let (judged, took) = process::timed(|| process::wait_for(MAP_LIMIT, || judged().transpose()).transpose());
    let status = node.status()?;
    judged?.ok_or_else(|| Stop::Failed(format!("the carrier's NAT is not seen: {status}")))?;
    if status["addresses"].to_string().contains(&router.outer.to_string()) {
        return Err(Stop::Failed(format!("an address between two NATs is told to peers: {}", status["addresses"])));
    }
    Ok(Outcome { took: Some(took), note: "mapped, and told as worthless".into(), ..Outcome::default() })
}

/// A neighbour answers every search at once. With a true gateway `beside` it, the node has to find that one.
fn impostor(lab: &Lab, beside: bool) -> Result<Outcome, Stop> {
    lab.network.router("ra").load(&Nat { has_gateway: true, ..Nat::default() })?;
    let mut igd = start(lab, "ha2", &[NEIGHBOUR, "impostor", BOASTED])?;
    let _gateway = if beside { Some(gateway::miniupnpd(lab)?) } else { None };
    let (node, _) = Node::alone(lab, "ha")?;
    let inner = node.port()?;
    igd.event(MAP_LIMIT, "searched", |_| true)?;
    if beside {
        let found = process::wait_for(MAP_LIMIT, || gateway::mapped_port(lab, inner).transpose()).transpose()?;
        let outer = found.ok_or_else(|| Stop::Failed("the true gateway has no rule for the node".into()))?;
        gateway::watch(lab.network.host("ha"), inner)?;
        if !gateway::arrives(lab, outer)? {
            return Err(Stop::Failed(format!("a packet to the mapped port {outer} does not arrive")));
        }
    } else {
        thread::sleep(BELIEF_WATCH);
    }
    let status = node.status()?;
    if status.to_string().contains(BOASTED) {
        return Err(Stop::Failed(format!("the neighbour's word is believed: {status}")));
    }
    if igd.event(Duration::ZERO, "added", |_| true).is_ok() {
        return Err(Stop::Failed("the neighbour was asked for a mapping".into()));
    }
    let note = if beside { "the true gateway is used" } else { "nobody is believed" };
    Ok(Outcome { note: note.into(), ..Outcome::default() })
}

fn start(lab: &Lab, machine: &str, args: &[&str]) -> Result<Service, Stop> {
    let words = [&["igd"], args].concat();
    let mut service = traffic::start(lab.network.host(machine), &words, "igd", &lab.dir)?;
    service.event(REQUEST_LIMIT * 2, "listening", |_| true)?;
    Ok(service)
}

/// Plays a gateway on this machine: ADDRESS permanent|mute|impostor EXTERNAL. Each request of note is a line of output.
pub(crate) fn run(args: &[String]) -> Result<(), Stop> {
    let usage = || Stop::Usage("igd wants ADDRESS permanent|mute|impostor EXTERNAL".into());
    let [own, manner, external] = args else { return Err(usage()) };
    let own: Ipv4Addr = own.parse().map_err(|_| usage())?;
    let manner = match manner.as_str() {
        "permanent" => Manner::Permanent,
        "mute" => Manner::Mute,
        "impostor" => Manner::Impostor,
        _ => return Err(usage()),
    };
    let failed = |error| Stop::Failed(format!("cannot listen: {error}"));
    let search = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, SEARCHED.port())).map_err(failed)?;
    search.join_multicast_v4(SEARCHED.ip(), &own).map_err(failed)?;
    let listener = TcpListener::bind((own, PORT)).map_err(failed)?;
    thread::spawn(move || answer_searches(&search, own));
    say(&json!({"event": "listening"}));
    for stream in listener.incoming().flatten() {
        // A client that breaks off is its own business.
        let _ = answer(stream, manner, external);
    }
    Ok(())
}

fn answer_searches(socket: &UdpSocket, own: Ipv4Addr) {
    let mut datagram = [0; 2_048];
    while let Ok((len, from)) = socket.recv_from(&mut datagram) {
        if datagram.get(..len).is_some_and(|it| it.starts_with(b"M-SEARCH")) {
            let answer = format!(
                "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\
                 USN: uuid:1::upnp:rootdevice\r\nEXT:\r\nLOCATION: http://{own}:{PORT}/device.xml\r\n\r\n"
            );
            let _ = socket.send_to(answer.as_bytes(), from);
            say(&json!({"event": "searched", "from": from.to_string()}));
        }
    }
}

/// Answers one request.
fn answer(stream: TcpStream, manner: Manner, external: &str) -> std::io::Result<()> {
    stream.set_read_timeout(Some(REQUEST_LIMIT))?;
    let mut reader = BufReader::new(stream.try_clone()?.take(MAX_REQUEST));
    let (mut head, mut line) = (String::new(), String::new());
    while reader.read_line(&mut line)? > 2 {
        head += &std::mem::take(&mut line);
    }
    let header = |name: &str| head.lines().find_map(|line| line.to_lowercase().strip_prefix(name).map(str::to_owned));
    let length = header("content-length:").and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let mut body = String::new();
    reader.take(length).read_to_string(&mut body)?;
    let (ok, text) = match head.split_whitespace().nth(1) {
        Some("/device.xml") => (true, device()),
        Some("/actions.xml") => (true, actions()),
        Some("/control") => control(&header("soapaction:").unwrap_or_default(), &body, manner, external),
        _ => (false, String::new()),
    };
    let status = if ok { "200 OK" } else { "500 Internal Server Error" };
    let len = text.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/xml\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{text}"
    );
    (&stream).write_all(answer.as_bytes())
}

/// Carries a request out; whether it succeeded, and the answer.
fn control(action: &str, body: &str, manner: Manner, external: &str) -> (bool, String) {
    let field = |name: &str| {
        let rest = body.split_once(&format!("<{name}>"))?.1;
        rest.split_once('<').map(|(value, _)| value.to_owned())
    };
    let number = |name: &str| field(name).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let mapping = json!({
        "event": "added", "external": number("NewExternalPort"), "lease": number("NewLeaseDuration"),
        "to": format!("{}:{}", field("NewInternalClient").unwrap_or_default(), number("NewInternalPort")),
    });
    if action.contains("addportmapping") {
        if manner == Manner::Permanent && mapping["lease"] != 0 {
            say(&json!({"event": "refused", "lease": mapping["lease"]}));
            return (false, fault(725, "OnlyPermanentLeasesSupported"));
        }
        if manner != Manner::Impostor && !lead(&mapping) {
            return (false, fault(501, "ActionFailed"));
        }
        say(&mapping);
        (true, envelope("AddPortMapping", ""))
    } else if action.contains("deleteportmapping") {
        let flushed = manner == Manner::Impostor || nft("flush chain inet upnpnat prerouting_miniupnpd");
        say(&json!({"event": "removed", "external": number("NewExternalPort")}));
        (flushed, envelope("DeletePortMapping", ""))
    } else if manner == Manner::Mute {
        (false, fault(501, "ActionFailed"))
    } else {
        let address = format!("<NewExternalIPAddress>{external}</NewExternalIPAddress>");
        (true, envelope("GetExternalIPAddress", &address))
    }
}

/// Makes the router of this namespace forward a port.
fn lead(mapping: &Value) -> bool {
    let (external, to) = (&mapping["external"], mapping["to"].as_str().unwrap_or_default());
    nft(&format!("add rule inet upnpnat prerouting_miniupnpd iifname wan udp dport {external} dnat ip to {to}"))
}

fn nft(rule: &str) -> bool {
    Command::new("nft").arg(rule).status().is_ok_and(|status| status.success())
}

const SERVICE: &str = "urn:schemas-upnp-org:service:WANIPConnection:1";

fn device() -> String {
    let nested = |kind: &str, inner: &str| {
        let kind = format!("<deviceType>urn:schemas-upnp-org:device:{kind}:1</deviceType>");
        format!("<device>{kind}{inner}</device>")
    };
    let service = format!(
        "<serviceList><service><serviceType>{SERVICE}</serviceType><serviceId>urn:upnp-org:serviceId:WANIPConn1</serviceId>\
         <SCPDURL>/actions.xml</SCPDURL><controlURL>/control</controlURL><eventSubURL>/events</eventSubURL></service></serviceList>"
    );
    let connection = nested("WANConnectionDevice", &service);
    let wan = nested("WANDevice", &format!("<deviceList>{connection}</deviceList>"));
    let root = nested("InternetGatewayDevice", &format!("<deviceList>{wan}</deviceList>"));
    format!("<?xml version=\"1.0\"?><root xmlns=\"urn:schemas-upnp-org:device-1-0\">{root}</root>")
}

fn actions() -> String {
    let action = |name: &str, arguments: &[&str]| {
        let argument = |name: &&str| format!("<argument><name>{name}</name><direction>in</direction></argument>");
        let arguments: String = arguments.iter().map(argument).collect();
        format!("<action><name>{name}</name><argumentList>{arguments}</argumentList></action>")
    };
    let delete = ["NewRemoteHost", "NewExternalPort", "NewProtocol"];
    let rest = ["NewInternalPort", "NewInternalClient", "NewEnabled", "NewPortMappingDescription", "NewLeaseDuration"];
    let add = [&delete[..], &rest].concat();
    let list = action("AddPortMapping", &add) + &action("DeletePortMapping", &delete);
    let list = list + &action("GetExternalIPAddress", &["NewExternalIPAddress"]);
    format!(
        "<?xml version=\"1.0\"?><scpd xmlns=\"urn:schemas-upnp-org:service-1-0\"><actionList>{list}</actionList></scpd>"
    )
}

fn envelope(action: &str, inner: &str) -> String {
    soap(&format!("<u:{action}Response xmlns:u=\"{SERVICE}\">{inner}</u:{action}Response>"))
}

fn fault(code: u16, words: &str) -> String {
    soap(&format!(
        "<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>\
         <UPnPError xmlns=\"urn:schemas-upnp-org:control-1-0\"><errorCode>{code}</errorCode>\
         <errorDescription>{words}</errorDescription></UPnPError></detail></s:Fault>"
    ))
}

fn soap(body: &str) -> String {
    format!(
        "<?xml version=\"1.0\"?><s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
         s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body>{body}</s:Body></s:Envelope>"
    )
}
