//! Blocks of ports on loopback, each given to one lane of one live run on the machine.

use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, socket};

/// How many ports a lane gets.
pub const BLOCK: u16 = 20;
/// Below the range that Linux takes ports for outgoing connections from (32768 on).
const RANGE: std::ops::Range<u16> = 20_000..32_000;

/// A block of [`BLOCK`] ports, reserved as long as this value lives.
///
/// The reservation is an abstract Unix socket named after the block: it belongs to
/// the network namespace as the ports do, every user sees it, and the kernel frees
/// it with its process (unix(7)).
#[derive(Debug)]
pub struct PortBlock {
    base: u16,
    _reservation: OwnedFd,
}

impl PortBlock {
    /// Reserves a block whose ports are all free, looking from a place that `seed`
    /// picks; `None` when there is none in the whole range.
    pub fn reserve(seed: u64) -> Option<Self> {
        let blocks = u64::from((RANGE.end - RANGE.start) / BLOCK);
        (0..blocks).find_map(|step| {
            let index = u16::try_from((seed + step) % blocks).ok()?;
            Self::at(RANGE.start + index * BLOCK)
        })
    }

    fn at(base: u16) -> Option<Self> {
        let name = UnixAddr::new_abstract(format!("isolane-ports-{base}").as_bytes()).ok()?;
        let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).ok()?;
        bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &name).ok()?;
        let free = (base..base + BLOCK).all(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok());
        free.then_some(Self { base, _reservation: fd })
    }

    /// The first port.
    pub fn base(&self) -> u16 {
        self.base
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_do_not_overlap_and_avoid_taken_ports() {
        let a = PortBlock::reserve(7).expect("a block");
        let b = PortBlock::reserve(7).expect("a block");
        assert!(a.base().abs_diff(b.base()) >= BLOCK);
        let taken = b.base() + 3;
        drop(b);
        let _listener = TcpListener::bind((Ipv4Addr::LOCALHOST, taken)).expect("free port");
        let c = PortBlock::reserve(7).expect("a block");
        assert!(!(c.base()..c.base() + BLOCK).contains(&taken));
    }
}
