//! Who is who: the token, and how both sides show that they have it without saying it. Pure, but for the making of secrets.
//!
//! The daemon and the shim share 32 random bytes, the token. Each sends the other a fresh challenge, and answers the other's
//! by HMAC-SHA256 under the token over both challenges and all that it claims: the version, its own process number, the lock
//! file of the state directory, the machine's boot, the number of the daemon's boot and its offset. So:
//! - An impostor who has bound the shim's name learns nothing that it could use: the token itself is never sent, an answer
//!   holds for this one pair of challenges, and the two sides' answers begin with different words, so neither can be sent back.
//! - An impostor who passes packets between the real two is found out: each side claims its process number under the proof,
//!   and the other compares it with the one that the kernel notes for the connection (SO_PEERCRED). After the greeting no
//!   packet is proved any more, and none needs to be: nobody else has an end of that connection.
//! - A restored copy of the directory has the token, but another lock file, and a restored image of a machine another boot.
//!
//! Against a process of the same user that is not confined none of this helps: it may read the daemon's memory.

use hmac_sha256::HMAC;
use rustix::rand::{GetRandomFlags, getrandom};

/// The bytes of a challenge.
pub const NONCE: usize = 32;
/// The bytes of a proof.
pub const PROOF: usize = 32;
/// The bytes of a machine boot's id.
pub const MACHINE: usize = 16;

/// What a daemon and its shim have in common.
#[derive(Clone, PartialEq, Eq)]
pub struct Token([u8; 32]);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Fresh random bytes.
///
/// # Errors
/// The kernel has none to give.
pub fn random<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    // Up to 256 bytes come whole.
    match getrandom(&mut bytes[..], GetRandomFlags::empty())? {
        n if n == N => Ok(bytes),
        _ => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}

impl Token {
    /// A new one.
    ///
    /// # Errors
    /// The kernel has no random bytes to give.
    pub fn new() -> std::io::Result<Self> {
        random().map(Self)
    }

    /// That one, from where it was kept.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes, to be kept where no agent reads.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Where a daemon lives: which state directory, and which boot of which machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The device of the state directory's lock file.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
    /// The boot of the machine (`/proc/sys/kernel/random/boot_id`).
    pub machine: [u8; MACHINE],
}

impl Place {
    /// The place of that lock file, now.
    ///
    /// # Errors
    /// The kernel does not say which boot this is.
    pub fn here(device: u64, inode: u64) -> std::io::Result<Self> {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let digits: Vec<u8> = text.bytes().filter_map(|b| char::from(b).to_digit(16)?.try_into().ok()).collect();
        let mut machine = [0; MACHINE];
        if digits.len() != 2 * MACHINE {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        for (byte, pair) in machine.iter_mut().zip(digits.chunks(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
        Ok(Self { device, inode, machine })
    }

    pub(super) fn bytes(&self) -> [u8; 16 + MACHINE] {
        let mut bytes = [0; 16 + MACHINE];
        bytes[..8].copy_from_slice(&self.device.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.inode.to_le_bytes());
        bytes[16..].copy_from_slice(&self.machine);
        bytes
    }
}

/// Both challenges of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Challenges {
    /// The daemon's.
    pub daemon: [u8; NONCE],
    /// The shim's.
    pub shim: [u8; NONCE],
}

/// What a side claims and proves.
#[derive(Clone, Copy, Debug)]
pub enum Claim {
    /// The shim's.
    Shim {
        /// Its process.
        pid: u32,
        /// When that began.
        start: u64,
    },
    /// The daemon's.
    Daemon {
        /// Its process.
        pid: u32,
        /// The number of its boot.
        boot: u64,
        /// Its offset.
        from: u64,
    },
}

/// The proof of a claim.
#[must_use]
pub fn prove(token: &Token, version: u16, both: &Challenges, place: &Place, claim: &Claim) -> [u8; PROOF] {
    HMAC::mac(claim_bytes(version, both, place, claim), token.bytes())
}

/// Whether it is the proof of that claim; takes as long for a wrong one as for the right one.
#[must_use]
pub fn holds(
    proof: &[u8; PROOF],
    token: &Token,
    version: u16,
    both: &Challenges,
    place: &Place,
    claim: &Claim,
) -> bool {
    HMAC::verify(claim_bytes(version, both, place, claim), token.bytes(), proof)
}

/// All that is proved, each part of fixed length behind a word that only one side uses.
fn claim_bytes(version: u16, both: &Challenges, place: &Place, claim: &Claim) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(160);
    let numbers = match *claim {
        Claim::Shim { pid, start } => {
            bytes.extend_from_slice(b"ostler: the shim");
            [u64::from(pid), start, 0]
        }
        Claim::Daemon { pid, boot, from } => {
            bytes.extend_from_slice(b"ostler: a daemon");
            [u64::from(pid), boot, from]
        }
    };
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(&both.daemon);
    bytes.extend_from_slice(&both.shim);
    bytes.extend_from_slice(&place.bytes());
    numbers.iter().for_each(|n| bytes.extend_from_slice(&n.to_le_bytes()));
    bytes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_proof_holds_for_just_what_it_was_made_for() {
        let token = Token::new().unwrap();
        let both = Challenges { daemon: random().unwrap(), shim: random().unwrap() };
        let place = Place::here(7, 8).unwrap();
        assert_ne!(place.machine, [0; MACHINE]);
        let claim = Claim::Daemon { pid: 1, boot: 2, from: 3 };
        let proof = prove(&token, 1, &both, &place, &claim);
        assert!(holds(&proof, &token, 1, &both, &place, &claim));
        let swapped = Challenges { daemon: both.shim, shim: both.daemon };
        let fresh = Challenges { shim: random().unwrap(), ..both };
        let others: [(&Token, u16, &Challenges, Place, Claim); 9] = [
            (&Token::new().unwrap(), 1, &both, place, claim),
            (&token, 2, &both, place, claim),
            (&token, 1, &swapped, place, claim),
            (&token, 1, &fresh, place, claim),
            (&token, 1, &both, Place { inode: 9, ..place }, claim),
            (&token, 1, &both, Place { machine: [0; MACHINE], ..place }, claim),
            (&token, 1, &both, place, Claim::Daemon { pid: 2, boot: 2, from: 3 }),
            (&token, 1, &both, place, Claim::Daemon { pid: 1, boot: 3, from: 3 }),
            (&token, 1, &both, place, Claim::Shim { pid: 1, start: 2 }),
        ];
        for (token, version, both, place, claim) in others {
            assert!(!holds(&proof, token, version, both, &place, &claim), "{place:?} {claim:?}");
        }
        assert_eq!(format!("{token:?}"), "Token(..)", "no log shows it");
    }
}
