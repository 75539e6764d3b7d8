//! Access control: one table for every listener. It decides for a caller that was identified before.

use super::ApiError;

/// The caller, as the connection and the token identify it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// On the unix socket: root, the daemon's own user, or one of the socket's group.
    Member,
    /// On the unix socket: any other user.
    Stranger,
    /// On a TCP listener, with its token.
    Bearer,
    /// On a TCP listener that has a token, without it.
    Nobody,
    /// On a TCP listener of this machine that has no token.
    Local,
}

/// The headers that show whether a web page sent a request.
#[derive(Clone, Copy, Debug)]
pub struct Marks<'a> {
    /// `Host`.
    pub host: Option<&'a str>,
    /// `Origin`.
    pub origin: Option<&'a str>,
    /// `Sec-Fetch-Site`.
    pub site: Option<&'a str>,
}

/// Whether a request is served.
///
/// A web page must not control the daemon, neither from its own origin nor by DNS rebinding. So a request with `Origin`
/// or `Sec-Fetch-Site` is refused on every listener. A request for a name that is not this machine's own is refused
/// unless it has the token, which no page has. The probes (`/healthz`, `/readyz`) reveal nothing and answer under any
/// name.
///
/// # Errors
/// Why the request is refused.
pub fn judge(caller: Caller, path: &str, marks: &Marks<'_>) -> Result<(), ApiError> {
    if caller == Caller::Stranger {
        return Err(ApiError::refused("this socket is for its owner and its group"));
    }
    if let Some((name, value)) =
        marks.origin.map(|v| ("Origin", v)).or_else(|| marks.site.map(|v| ("Sec-Fetch-Site", v)))
    {
        return Err(ApiError::origin(format!(
            "requests of web pages are not served (this one has {name}: {}); leave that header out",
            shown(value)
        )));
    }
    match caller {
        Caller::Nobody => Err(ApiError::unauthorized()),
        Caller::Bearer => Ok(()),
        Caller::Stranger | Caller::Member | Caller::Local => match marks.host {
            Some(host) if !is_local(host) && !matches!(path, "/healthz" | "/readyz") => Err(ApiError::origin(format!(
                "host {} is not allowed here: ask for localhost, as in http://localhost/v1/status, or configure a token \
                 ([http] token_file), with which a TCP listener takes any name",
                shown(host)
            ))),
            _ => Ok(()),
        },
    }
}

/// Whether a process may use a unix socket: root, the daemon's own user, and members of the group that may write to the
/// socket's file (`None`: there is no such group). The file's mode alone is not enough, because a service manager's
/// default opens a socket to all users.
#[must_use]
pub fn may_connect(uid: u32, gid: u32, groups: &[u32], own: u32, group: Option<u32>) -> bool {
    uid == 0 || uid == own || group.is_some_and(|g| gid == g || groups.contains(&g))
}

/// A header's value for an error text.
fn shown(value: &str) -> String {
    value.chars().take(100).collect()
}

/// Whether a `Host` names this machine itself, with or without a port. Its name in a network does not count: the owner
/// of any domain can make a name point here.
fn is_local(host: &str) -> bool {
    let port = |p: &str| p.bytes().all(|b| b.is_ascii_digit());
    let name = host.rsplit_once(':').filter(|(_, p)| port(p)).map_or(host, |(name, _)| name);
    name.eq_ignore_ascii_case("localhost")
        || name.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The token of an `Authorization` field. The scheme's letters may be upper or lower case.
#[must_use]
pub fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_matches(' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Caller; 5] = [Caller::Member, Caller::Stranger, Caller::Bearer, Caller::Nobody, Caller::Local];

    #[test]
    fn one_table_for_every_listener() {
        // What each caller gets, in the order of `ALL`; "" is served.
        const OWN: [&str; 5] = ["", "refused", "", "unauthorized", ""];
        const NAMED: [&str; 5] = ["forbidden_origin", "refused", "", "unauthorized", "forbidden_origin"];
        const PAGE: [&str; 5] =
            ["forbidden_origin", "refused", "forbidden_origin", "forbidden_origin", "forbidden_origin"];
        type Row = (&'static str, Option<&'static str>, Option<&'static str>, Option<&'static str>, [&'static str; 5]);
        let table: &[Row] = &[
            ("/v1/status", Some("localhost"), None, None, OWN),
            ("/v1/status", Some("LocalHost:7411"), None, None, OWN),
            ("/v1/status", Some("127.0.0.1:7411"), None, None, OWN),
            ("/v1/status", Some("127.8.9.1"), None, None, OWN),
            ("/v1/status", Some("[::1]:7411"), None, None, OWN),
            ("/v1/status", Some("[::1]"), None, None, OWN),
            ("/v1/status", None, None, None, OWN),
            ("/v1/status", Some("any-name"), None, None, NAMED),
            ("/v1/status", Some("localhost.evil.example"), None, None, NAMED),
            ("/v1/status", Some("127.0.0.1.evil.example:80"), None, None, NAMED),
            ("/v1/status", Some("10.0.0.1:7411"), None, None, NAMED),
            ("/v1/status", Some(""), None, None, NAMED),
            ("/healthz", Some("10.0.0.1:7411"), None, None, OWN),
            ("/readyz", Some("pod"), None, None, OWN),
            ("/metrics", Some("pod"), None, None, NAMED),
            ("/healthz", Some("localhost"), Some("http://evil.example"), None, PAGE),
            ("/v1/status", Some("localhost"), Some("http://evil.example"), None, PAGE),
            ("/v1/status", Some("localhost"), Some("null"), None, PAGE),
            ("/v1/status", Some("localhost"), Some("http://localhost"), None, PAGE),
            ("/v1/status", Some("localhost"), None, Some("cross-site"), PAGE),
            ("/v1/status", Some("localhost"), None, Some("none"), PAGE),
        ];
        for (path, host, origin, site, wanted) in table {
            let marks = Marks { host: *host, origin: *origin, site: *site };
            for (caller, wanted) in ALL.into_iter().zip(wanted) {
                let got = judge(caller, path, &marks);
                let code = got.as_ref().map_or_else(ApiError::code, |()| "");
                assert_eq!(code, *wanted, "{caller:?} {path} {marks:?}: {got:?}");
            }
        }
    }

    #[test]
    fn who_is_refused_for_a_name_is_told_which_and_what_to_do() {
        let marks = Marks { host: Some("any-name:80"), origin: None, site: None };
        let told = judge(Caller::Member, "/v1/status", &marks).unwrap_err().to_string();
        assert!(told.contains("any-name:80") && told.contains("localhost") && told.contains("token_file"), "{told}");
    }

    #[test]
    fn a_socket_is_for_its_owner_and_its_group() {
        for (uid, gid, groups, group, wanted) in [
            (0, 9, &[][..], None, true),
            (7, 9, &[], None, true),
            (8, 9, &[], None, false),
            (8, 9, &[5, 6], None, false),
            (8, 9, &[5, 6], Some(4), false),
            (8, 9, &[5, 6], Some(9), true),
            (8, 9, &[5, 6], Some(6), true),
        ] {
            assert_eq!(may_connect(uid, gid, groups, 7, group), wanted, "{uid} {gid} {groups:?} {group:?}");
        }
    }

    #[test]
    fn a_scheme_has_no_case() {
        for good in ["Bearer tok", "bearer tok", "BEARER  tok "] {
            assert_eq!(bearer(good), Some("tok"), "{good}");
        }
        for bad in ["Basic tok", "Bearer", "tok", "Bearertok"] {
            assert_eq!(bearer(bad), None, "{bad}");
        }
    }
}
