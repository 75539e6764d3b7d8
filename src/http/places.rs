//! The places of connections: who may have one, so that clients of one listener cannot take those of another.

use super::{Limits, Peer};

/// Whose place it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Root, or the server's own user, on a unix socket.
    Own,
    /// Anybody else on a unix socket.
    Unix,
    /// A client over TCP.
    Tcp,
}

impl Kind {
    /// What a peer is to a server of the user `own`.
    pub fn of(peer: &Peer, own: u32) -> Self {
        match peer {
            Peer::Unix { uid, .. } if *uid == 0 || *uid == own => Self::Own,
            Peer::Unix { .. } => Self::Unix,
            Peer::Tcp(_) => Self::Tcp,
        }
    }
}

/// How many places are taken, and by whom.
#[derive(Debug, Default)]
pub(super) struct Places {
    live: usize,
    unix: usize,
    tcp: usize,
    /// By listener: connections without a request that was let in.
    unknown: Vec<usize>,
}

impl Places {
    /// Connections in all.
    pub fn live(&self) -> usize {
        self.live
    }

    /// A place for a new connection, or why there is none.
    ///
    /// Some places are kept for root and the server's own user. Of the others TCP clients have at most seven eighths.
    /// On each listener, clients without a request that was let in share a few hundred.
    pub fn enter(&mut self, limits: &Limits, kind: Kind, listener: usize) -> Result<(), String> {
        let most = limits.max_connections;
        let open = most - limits.kept.min(most / 4);
        let tcp = open - open / 8;
        let unknown = limits.unknown.min(open.div_ceil(2));
        if self.unknown.len() <= listener {
            self.unknown.resize(listener + 1, 0);
        }
        let here = &mut self.unknown[listener];
        let full = |n: usize, what: &str| Err(format!("too many connections{what} (limit {n})"));
        match kind {
            _ if self.live >= most => return full(most, ""),
            Kind::Own => {}
            _ if self.unix + self.tcp >= open => return full(open, " of other users"),
            Kind::Tcp if self.tcp >= tcp => return full(tcp, " over TCP"),
            _ if *here >= unknown => return full(unknown, " without an accepted request"),
            Kind::Unix | Kind::Tcp => {}
        }
        *here += usize::from(kind != Kind::Own);
        match kind {
            Kind::Own => {}
            Kind::Unix => self.unix += 1,
            Kind::Tcp => self.tcp += 1,
        }
        self.live += 1;
        Ok(())
    }

    /// A request of a connection was let in, for the first time.
    pub fn known(&mut self, kind: Kind, listener: usize) {
        if kind != Kind::Own
            && let Some(n) = self.unknown.get_mut(listener)
        {
            *n = n.saturating_sub(1);
        }
    }

    /// A connection ended; `known`: a request of it had been let in.
    pub fn leave(&mut self, kind: Kind, listener: usize, known: bool) {
        if !known {
            self.known(kind, listener);
        }
        match kind {
            Kind::Own => {}
            Kind::Unix => self.unix -= 1,
            Kind::Tcp => self.tcp -= 1,
        }
        self.live -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(most: usize) -> Limits {
        Limits { max_connections: most, ..Limits::default() }
    }

    /// How many more of a kind get a place, each let in at once if `known`.
    fn fill(places: &mut Places, limits: &Limits, kind: Kind, listener: usize, known: bool) -> usize {
        let mut n = 0;
        while places.enter(limits, kind, listener).is_ok() {
            if known {
                places.known(kind, listener);
            }
            n += 1;
        }
        n
    }

    #[test]
    fn no_door_is_shut_by_what_comes_in_at_another() {
        let limits = limits(4096);
        let mut p = Places::default();
        // By an address: first those that say nothing, then those that are let in.
        assert_eq!(fill(&mut p, &limits, Kind::Tcp, 1, false), 256);
        assert_eq!(fill(&mut p, &limits, Kind::Tcp, 2, false), 256, "each listener has its own");
        for _ in 0..256 {
            p.known(Kind::Tcp, 1);
        }
        assert_eq!(fill(&mut p, &limits, Kind::Tcp, 1, true), 4032 - 504 - 512);
        // The group of the unix socket has an eighth, its owner what is kept.
        assert_eq!(fill(&mut p, &limits, Kind::Unix, 0, true), 504);
        assert_eq!(fill(&mut p, &limits, Kind::Own, 0, true), 64);
        assert_eq!(p.live(), 4096);
        p.leave(Kind::Tcp, 1, true);
        assert!(p.enter(&limits, Kind::Tcp, 1).is_ok(), "a place that is given back can be had");
    }

    #[test]
    fn few_places_are_shared_as_fairly() {
        for most in 1..200 {
            let limits = limits(most);
            let mut p = Places::default();
            let silent = fill(&mut p, &limits, Kind::Tcp, 0, false);
            assert!(silent > 0, "{most}: nobody comes in");
            (0..silent).for_each(|_| p.known(Kind::Tcp, 0));
            fill(&mut p, &limits, Kind::Tcp, 0, true);
            fill(&mut p, &limits, Kind::Unix, 1, true);
            let own = fill(&mut p, &limits, Kind::Own, 1, true);
            assert!(own >= (most / 4).min(64) && p.live() == most, "{most}: {own}");
        }
    }

    #[test]
    fn what_leaves_leaves_nothing_behind() {
        let limits = limits(40);
        let mut p = Places::default();
        for known in [true, false] {
            for kind in [Kind::Own, Kind::Unix, Kind::Tcp] {
                p.enter(&limits, kind, 3).unwrap();
                if known {
                    p.known(kind, 3);
                }
                p.leave(kind, 3, known);
            }
        }
        assert_eq!((p.live, p.unix, p.tcp, p.unknown), (0, 0, 0, vec![0; 4]));
    }
}
