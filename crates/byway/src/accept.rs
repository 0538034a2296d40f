//! Accepting: the gate's decision on each stranger, then the handshake and the hellos, all within a deadline.

use std::sync::{Arc, OnceLock, PoisonError};

use byway_proto::{
    gate::{DropReason, HANDSHAKE_TOTAL, HandshakeId, Verdict},
    hello::Hello,
    switch::{By, FILTER_DEADLINE, KnockId},
};
use tokio::{sync::oneshot, time};
use tracing::debug;

use crate::{
    core::Core,
    gone::Gone,
    link::establish::{self, ControlStream, Established, Introduced},
    net::track::Track,
    switch::{Command, Knock, Origin},
};

/// Takes strangers in until the endpoint is closed; there is no task for one before the gate has let it in.
pub(crate) async fn run(core: Arc<Core>) {
    loop {
        let incoming = tokio::select! {
            biased;
            () = core.tasks.stopped() => return,
            incoming = core.endpoint.incoming() => incoming,
        };
        let Some(incoming) = incoming else { return };
        let Some(track) = core.mux.routes.read().by_alias(incoming.remote_address()).cloned() else {
            incoming.ignore();
            continue;
        };
        if track.lock().admitted {
            incoming.ignore(); // a late copy of the Initial with which its handshake began, and which QUIC has forgotten
            continue;
        }
        match admit(&core, &track, incoming.remote_address_validated()) {
            Verdict::Accept(handshake) => {
                track.lock().admitted = true;
                core.tasks.spawn(greet(Arc::clone(&core), track, incoming, handshake));
            }
            // The token names the alias; it is drawn again for the same source, should this one be forgotten.
            Verdict::Retry if incoming.may_retry() => drop(incoming.retry()),
            Verdict::Refuse(reason) => {
                debug!(?reason, "stranger refused");
                incoming.refuse();
                core.mux.routes.remove(track.alias());
            }
            Verdict::Retry | Verdict::Drop(_) => {
                incoming.ignore();
                core.mux.routes.remove(track.alias());
            }
        }
    }
}

fn admit(core: &Core, track: &Track, validated: bool) -> Verdict {
    let Some(via) = track.via() else { return Verdict::Drop(DropReason::SourceBudget) };
    let source = core.mux.source_of(via);
    let mut gate = core.mux.gate.lock().unwrap_or_else(PoisonError::into_inner);
    gate.set_accept_queue(core.switch.waiting());
    gate.admit(source, validated, core.mux.now())
}

/// The program's word on where a stranger comes from; without one in time it is refused.
async fn is_welcome(core: &Core, track: &Track) -> bool {
    let Some(filter) = core.config.source_filter.clone() else { return true };
    let Some(via) = track.via() else { return false };
    let origin = Origin { remote: core.mux.sockets.wss().behind(via.remote()), relayed: via.is_relay() };
    let (told, verdict) = oneshot::channel();
    // A task of its own: should the filter panic, its word is missing, and nothing else.
    core.tasks.spawn(async move {
        if let Ok(verdict) = time::timeout(FILTER_DEADLINE, filter.judge(origin)).await {
            let _ = told.send(verdict); // the handshake may be over
        }
    });
    verdict.await.unwrap_or(false)
}

async fn greet(core: Arc<Core>, track: Arc<Track>, incoming: quinn::Incoming, handshake: HandshakeId) {
    let vetted = OnceLock::new(); // kept where it outlives a handshake that runs out of time
    let greeted = async {
        if !is_welcome(&core, &track).await {
            incoming.ignore();
            return Err(Gone::Filtered("not from there".into()));
        }
        let connecting = core.endpoint.accept(&track, incoming).map_err(|error| Gone::Lost(error.to_string()))?;
        let connection = core.endpoint.handshake(&track, connecting).await.map_err(|e| Gone::Lost(e.to_string()))?;
        hello(&core, &track, connection, &vetted).await
    };
    // Whatever the other side does, or leaves undone, it is a peer by then or gone.
    let greeted = time::timeout(HANDSHAKE_TOTAL, greeted).await.unwrap_or(Err(Gone::TimedOut));
    {
        let mut gate = core.mux.gate.lock().unwrap_or_else(PoisonError::into_inner);
        match &greeted {
            Ok(_) => gate.handshake_done(handshake),
            Err(_) => gate.handshake_failed(handshake),
        }
    }
    match greeted {
        Ok((established, None)) => {
            match &core.serving {
                Some(shell) => shell.accept(&core, established),
                None => core.retire(&track), // not agreed by a node that does not relay
            }
        }
        Ok((established, Some(knock))) => core.switch.up(established, By::Knock(knock)).await,
        Err(reason) => {
            debug!(%reason, "handshake failed");
            core.retire(&track);
            if let Some(knock) = vetted.get() {
                core.switch.send(Command::KnockOver(*knock)).await;
            }
        }
    }
}

/// Exchanges hellos as the accepting side; a link that is not for relaying comes with the switch's leave, which is noted
/// in `vetted`.
async fn hello(
    core: &Arc<Core>,
    track: &Arc<Track>,
    connection: quinn::Connection,
    vetted: &OnceLock<KnockId>,
) -> Result<(Established, Option<KnockId>), Gone> {
    let peer = establish::proven_peer(&connection)?;
    if peer == core.id() {
        Gone::SelfDial.close(&connection);
        return Err(Gone::SelfDial);
    }
    core.run_routes(track, &connection, core.config.paths.clone(), Some(peer)).await?;
    let mut control = ControlStream::accept(&connection).await?;
    let theirs = control.hear().await?;
    let knock = if theirs.relay && core.serving.is_some() {
        None
    } else {
        let knock = Knock { peer, instance: theirs.instance, via: track.via() };
        let knock = core.switch.vet(knock).await.inspect_err(|reason| reason.close(&connection))?;
        Some(*vetted.get_or_init(|| knock))
    };
    let established = agree(core, track, connection, control, (theirs, knock.is_none())).await?;
    Ok((established, knock))
}

async fn agree(
    core: &Arc<Core>,
    track: &Arc<Track>,
    connection: quinn::Connection,
    mut control: ControlStream,
    (theirs, for_relaying): (Hello, bool),
) -> Result<Established, Gone> {
    let ours = core.hello(core.serving.is_some());
    let introduction = if for_relaying { Introduced::default() } else { core.introduction(track) };
    control.say(ours.clone(), introduction, usize::MAX).await?;
    let agreed = establish::agreed(&connection, &ours, &theirs)?;
    Established::new(connection, Arc::clone(track), control, theirs, agreed).ok_or(Gone::SelfDial)
}
