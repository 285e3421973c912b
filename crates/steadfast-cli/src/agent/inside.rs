//! The socket inside each container of this node: who listens there, and who is cut off before a checkpoint.
//!
//! A connection that leads out of a container can't be imaged; one that has ended can. So everybody is cut off and nobody
//! let in while a checkpoint is taken ([`Sockets::close`]); the program connects again, here or where it is restored. The
//! files outlive an agent, and the next one listens in their place. What is told through them is decided in `api::own`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use steadfast_container::Container;
use steadfast_proto::ids::ContainerId;
use tokio::net::UnixListener;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::containers::lock;
use super::listen;

/// Connections of one container at once; more wait.
const CONNECTIONS_MAX: usize = 16;

/// Makes what is served to a container.
type Serves = Arc<dyn Fn(ContainerId) -> Router + Send + Sync>;

/// The sockets of this node's containers.
pub(super) struct Sockets {
    /// Absent until the agent is whole: whoever connects earlier waits.
    serves: watch::Sender<Option<Serves>>,
    open: Mutex<BTreeMap<ContainerId, Open>>,
    runtime: tokio::runtime::Handle,
}

struct Open {
    /// Ends the task when it is sent, or dropped.
    end: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Sockets {
    /// None yet. Called within the runtime that is to serve them.
    pub(super) fn new() -> Sockets {
        Sockets {
            serves: watch::Sender::new(None),
            open: Mutex::default(),
            runtime: tokio::runtime::Handle::current(),
        }
    }

    /// From now on this is served.
    pub(super) fn serve(&self, serves: impl Fn(ContainerId) -> Router + Send + Sync + 'static) {
        self.serves.send_replace(Some(Arc::new(serves)));
    }

    /// Listens for a container's programs, in place of whoever did so before.
    pub(super) fn open(&self, id: ContainerId, container: &Container) {
        let _inside = self.runtime.enter();
        let listener = container.listen().and_then(|listener| {
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener)
        });
        let listener = match listener {
            Ok(listener) => listener,
            Err(error) => {
                tracing::warn!(%id, %error, "a container has no socket of its own: its program hears nothing of the cluster");
                return;
            }
        };
        let (end, ended) = oneshot::channel();
        let task = self.runtime.spawn(accept(listener, id, self.serves.subscribe(), ended));
        lock(&self.open).insert(id, Open { end, task });
    }

    /// Cuts everybody inside off; returns when nobody is connected any more, nor can be.
    pub(super) async fn close(&self, id: ContainerId) {
        let Some(open) = self.forget(id) else { return };
        // Both fail only when the task has ended.
        let _ = open.end.send(());
        let _ = open.task.await;
    }

    /// Stops listening for a container, without waiting.
    pub(super) fn end(&self, id: ContainerId) {
        self.forget(id);
    }

    fn forget(&self, id: ContainerId) -> Option<Open> {
        lock(&self.open).remove(&id)
    }
}

/// Serves a container's programs until it is told to end; then nothing of any connection is left.
async fn accept(
    listener: UnixListener,
    id: ContainerId,
    mut serves: watch::Receiver<Option<Serves>>,
    mut ended: oneshot::Receiver<()>,
) {
    let mut connections = JoinSet::new();
    let serving = async {
        let Ok(serves) = serves.wait_for(Option::is_some).await.map(|serves| serves.clone()) else { return };
        let Some(router) = serves.map(|serves| serves(id)) else { return };
        loop {
            tokio::select! {
                accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(listen::serve(stream, router.clone()));
                    }
                    Err(error) => {
                        tracing::warn!(%id, %error, "a container's socket can't accept");
                        tokio::time::sleep(listen::ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        }
    };
    tokio::select! {
        () = serving => {}
        _ = &mut ended => {}
    }
    // First the door: whoever waits before it is refused, and connects nowhere.
    drop(listener);
    connections.shutdown().await;
}
