//! The notice that wakes an idle agent which waits with a token (`invite --notify`).
//!
//! It carries the cluster's id and no configuration: whom to ask and whom to trust stands in the token alone (U5). So
//! whoever forges one makes the agent ask its own inviters once more, at most once a second, and nothing else.

use std::net::SocketAddr;
use std::time::Duration;

use steadfast::envelope::Format;
use steadfast_proto::ids::ClusterId;
use tokio::net::UdpSocket;

use crate::codes::Code;
use crate::failure::Failure;

const NOTICE: Format = Format { magic: *b"SFno", version: 1, version_min: 1, body_bytes_max: 16 };
/// How often one is sent: it may be lost, and the agent asks by itself after half a minute anyway.
const COPIES: usize = 3;
const COPY_PAUSE: Duration = Duration::from_millis(50);
/// Forged notices can't make an agent ask more often than this.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// The address that somebody typed.
pub(super) fn address(text: &str) -> Result<SocketAddr, Failure> {
    text.parse().map_err(|_| {
        Failure::new(
            Code::BadRequest,
            format!("notify: {text:?} is no address with a port, such as 10.0.1.12:7400"),
        )
    })
}

/// Wakes the agent that listens at `to`.
pub(super) async fn send(cluster: ClusterId, to: SocketAddr) -> Result<(), Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(
            Code::NetworkFailed,
            format!("the invitation stands, and the notice could not be sent to {to}: {error}"),
        )
    };
    let any: SocketAddr = if to.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any).await.map_err(failed)?;
    let notice = NOTICE.wrap(&cluster.0.to_le_bytes());
    for _ in 0..COPIES {
        socket.send_to(&notice, to).await.map_err(failed)?;
        tokio::time::sleep(COPY_PAUSE).await;
    }
    Ok(())
}

/// The cluster that a notice names.
pub(super) fn decode(bytes: &[u8]) -> Option<ClusterId> {
    let (_, body) = NOTICE.unwrap(bytes).ok()?;
    let id: [u8; 16] = body.try_into().ok()?;
    Some(ClusterId(u128::from_le_bytes(id)))
}

/// Hears notices on this node's addresses while no agent of a member does.
#[derive(Debug)]
pub(super) struct Listener {
    sockets: Vec<UdpSocket>,
}

impl Listener {
    /// Listens where it can: a notice only saves time.
    pub(super) async fn bind(addresses: impl Iterator<Item = SocketAddr>) -> Listener {
        let mut sockets = Vec::new();
        for address in addresses {
            match UdpSocket::bind(address).await {
                Ok(socket) => sockets.push(socket),
                Err(error) => tracing::debug!(%address, %error, "notices can't be heard here"),
            }
        }
        Listener { sockets }
    }

    /// Returns when a notice of this cluster came, or `patience` is over.
    pub(super) async fn wait(&self, cluster: ClusterId, patience: Duration) {
        tokio::time::sleep(PAUSE_MIN.min(patience)).await;
        let heard: Vec<_> = self.sockets.iter().map(|socket| Box::pin(hear(socket, cluster))).collect();
        let notice = async {
            if heard.is_empty() {
                return std::future::pending::<()>().await;
            }
            futures_util::future::select_all(heard).await;
        };
        if tokio::time::timeout(patience.saturating_sub(PAUSE_MIN), notice).await.is_ok() {
            tracing::info!("woken by a notice; the invitation is looked for");
        }
    }
}

async fn hear(socket: &UdpSocket, cluster: ClusterId) {
    let mut bytes = [0; 64];
    loop {
        match socket.recv_from(&mut bytes).await {
            Ok((length, _)) if bytes.get(..length).and_then(decode) == Some(cluster) => return,
            Ok(_) => {}
            // A socket that fails again and again must not spin.
            Err(_) => tokio::time::sleep(PAUSE_MIN).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_is_a_cluster_id_and_nothing_else() {
        let bytes = NOTICE.wrap(&7u128.to_le_bytes());
        assert_eq!(decode(&bytes), Some(ClusterId(7)));
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes[..cut]), None);
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(decode(&longer), None);
        assert_eq!(decode(b"hello"), None);
        assert!(address("10.0.1.12").unwrap_err().message.contains("with a port"));
    }
}
