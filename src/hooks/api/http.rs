//! `ostler.http.request{}`: one request, bounded in time and size. TLS is verified against the system's roots.
//!
//! The request is made on a thread of its own, so that the caller can leave at its timeout, or when the daemon stops.
//! The connection is then shut down, which ends the thread; only looking up a name and connecting cannot be cut short,
//! and end by their own timeouts.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{TryRecvError, bounded};
use mlua::{Function, Lua, MultiValue, Table, Value};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use ureq::http::{HeaderMap, Method, Request, Uri};
use ureq::tls::{RootCerts, TlsConfig};

use super::{Args, Context, ScriptError, duration, function, text, wrong};
use crate::awake::Span;
use crate::hooks::kick::Kick;
use crate::hooks::lock;
use crate::thread;

/// The most that is read of an answer, in bytes.
const BODY: u64 = 8 * 1024 * 1024;
/// How long a request may take, unless the script or its own deadline says otherwise.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The most redirects that a request follows.
const REDIRECTS: usize = 5;
/// The most threads of requests, including those that no caller waits for any more.
const THREADS: usize = 300;

/// The client of a state: connections are kept between requests. Redirects are followed by [`follow`].
fn client() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .max_response_header_size(64 * 1024)
        .max_idle_connections(4)
        .allow_non_standard_methods(true)
        .user_agent(concat!("ostler/", env!("CARGO_PKG_VERSION")))
        .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
        .build()
        .new_agent()
}

/// What a script asks for.
struct RequestArgs {
    request: Request<Vec<u8>>,
    timeout: Duration,
}

fn wanted(args: &Args, left: Option<Duration>) -> Result<RequestArgs, ScriptError> {
    let Some(options) = args.options(0, &["url", "method", "headers", "body", "timeout"])? else {
        return Err(ScriptError::text("a table expected: request{url=, method=, headers=, body=, timeout=}"));
    };
    let url = text(&options.raw_get::<Value>("url")?, "url")?;
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return Err(ScriptError::text(format!("url: '{url}': http:// or https:// expected")));
    }
    let body = match options.raw_get::<Value>("body")? {
        Value::Nil => None,
        Value::String(s) => Some(s.as_bytes().to_vec()),
        other => return Err(wrong("body", "a string", &other)),
    };
    let method = match options.raw_get::<Value>("method")? {
        Value::Nil => if body.is_some() { "POST" } else { "GET" }.to_owned(),
        v => text(&v, "method")?.to_ascii_uppercase(),
    };
    let mut request = Request::builder().method(method.as_str()).uri(&url);
    match options.raw_get::<Value>("headers")? {
        Value::Nil => {}
        Value::Table(headers) => {
            for pair in headers.pairs::<Value, Value>() {
                let (name, value) = pair?;
                let name = text(&name, "header")?;
                let value = match value {
                    Value::Integer(n) => n.to_string(),
                    v => text(&v, &name)?,
                };
                request = request.header(name, value);
            }
        }
        other => return Err(wrong("headers", "a table", &other)),
    }
    let timeout = match options.raw_get::<Value>("timeout")? {
        Value::Nil => TIMEOUT,
        v => duration(&v, "timeout")?,
    };
    let request = request.body(body.unwrap_or_default()).map_err(|e| ScriptError::text(e.to_string()))?;
    Ok(RequestArgs { request, timeout: left.map_or(timeout, |left| left.min(timeout)) })
}

type Got = (u16, Vec<(String, Vec<u8>)>, Vec<u8>);

/// A repeated header becomes one, with its values separated by commas.
fn joined(headers: Vec<(String, Vec<u8>)>) -> BTreeMap<String, Vec<u8>> {
    let mut all: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for (name, value) in headers {
        match all.entry(name) {
            Entry::Vacant(first) => drop(first.insert(value)),
            Entry::Occupied(mut before) => {
                before.get_mut().extend_from_slice(b", ");
                before.get_mut().extend(value);
            }
        }
    }
    all
}

/// Whether an address belongs to this machine; no proxy is used for it.
fn is_here(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

/// Where a redirect leads: an address, or a path at the one before.
fn target(from: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next().unwrap_or_default();
    let (scheme, authority) = (from.scheme_str()?, from.authority()?);
    let path = from.path();
    let whole = match location {
        l if l.contains("://") && !l.starts_with(['/', '?', '.']) => l.to_owned(),
        l if l.starts_with("//") => format!("{scheme}:{l}"),
        l if l.starts_with('/') => format!("{scheme}://{authority}{l}"),
        l if l.is_empty() || l.starts_with('?') => format!("{scheme}://{authority}{path}{l}"),
        l => format!("{scheme}://{authority}{}/{l}", path.rsplit_once('/').map_or("", |(dir, _)| dir)),
    };
    let uri: Uri = whole.parse().ok()?;
    (matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()).then_some(uri)
}

/// Whether two addresses have the same scheme, host and port, so that a script's headers may go to both.
fn same_place(a: &Uri, b: &Uri) -> bool {
    let port = |uri: &Uri| uri.port_u16().or(Some(if uri.scheme_str() == Some("https") { 443 } else { 80 }));
    let host = |uri: &Uri| uri.host().unwrap_or_default().to_ascii_lowercase();
    a.scheme_str() == b.scheme_str() && host(a) == host(b) && port(a) == port(b)
}

/// Makes one request and, for GET and HEAD, follows its redirects; to another address without the script's headers.
/// Other methods get the redirect as their answer: only the script knows whether the request may be repeated elsewhere.
fn follow(client: &ureq::Agent, request: Request<Vec<u8>>, patience: Duration) -> Result<Got, String> {
    let (mut parts, mut body) = request.into_parts();
    for _ in 0..=REDIRECTS {
        let mut request = Request::new(std::mem::take(&mut body));
        *request.method_mut() = parts.method.clone();
        *request.uri_mut() = parts.uri.clone();
        *request.headers_mut() = parts.headers.clone();
        // Nobody can cut these short.
        let mut config = client.configure_request(request);
        config = config.timeout_resolve(Some(patience)).timeout_connect(Some(patience));
        if is_here(&parts.uri) {
            config = config.proxy(None);
        }
        let mut response = client.run(config.build()).map_err(|e| e.to_string())?;
        let status = response.status().as_u16();
        let next = response.headers().get("location").and_then(|l| l.to_str().ok()).and_then(|l| target(&parts.uri, l));
        if let Some(next) = next
            && matches!(status, 301 | 302 | 303 | 307 | 308)
            && (parts.method == Method::GET || parts.method == Method::HEAD)
        {
            if !same_place(&parts.uri, &next) {
                parts.headers = HeaderMap::new();
            }
            parts.uri = next;
            continue;
        }
        let headers = response.headers().iter().map(|(n, v)| (n.as_str().to_owned(), v.as_bytes().to_vec())).collect();
        let body = response.body_mut().with_config().limit(BODY).read_to_vec().map_err(|e| e.to_string())?;
        return Ok((status, headers, body));
    }
    Err(format!("more than {REDIRECTS} redirects"))
}

/// Counts the thread of a request while it lives; rings when it ends.
struct OpenRequest(Arc<OwnedFd>);

static ALIVE: AtomicUsize = AtomicUsize::new(0);

impl OpenRequest {
    fn begin(bell: &Arc<OwnedFd>) -> Result<Self, String> {
        let alive = ALIVE.fetch_add(1, Ordering::AcqRel);
        let this = Self(Arc::clone(bell));
        if alive < THREADS { Ok(this) } else { Err(format!("too many requests at once (limit {THREADS})")) }
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        ALIVE.fetch_sub(1, Ordering::AcqRel);
        let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
    }
}

/// Makes a request and waits until it ends, its time is over, or a kick. A request that is left takes the client with
/// it.
fn fetch(kept: &Mutex<Option<ureq::Agent>>, wanted: RequestArgs, kick: Option<&Kick>) -> Result<Got, String> {
    let awake = Span::begin();
    let client = lock(kept).take().unwrap_or_else(client);
    let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|e| e.to_string())?);
    let alive = OpenRequest::begin(&bell)?;
    let (tell, told) = bounded(1);
    let (asked, RequestArgs { request, timeout }) = (client.clone(), wanted);
    let patience = timeout.min(TIMEOUT);
    let thread = thread::spawn_own("hook-http", thread::DEEP_STACK, move || {
        // Dropped last: when it rings, the answer is there.
        let alive = alive;
        let _ = tell.send(follow(&asked, request, patience));
        drop(tell);
        drop(alive);
    });
    thread.map_err(|e| format!("no thread for the request: {e}"))?;
    loop {
        match told.try_recv() {
            Ok(got) => {
                *lock(kept) = Some(client);
                return got;
            }
            Err(TryRecvError::Disconnected) => return Err("the thread of the request has died".to_owned()),
            Err(TryRecvError::Empty) => {}
        }
        let left = awake.left(timeout);
        let kicked = kick.is_some_and(Kick::is_kicked);
        if kicked || left.is_zero() {
            client.shutdown();
            return Err(match kicked {
                true => "cut off because the daemon stops".to_owned(),
                false => format!("timeout: no answer within {timeout:?}"),
            });
        }
        let mut fds = vec![PollFd::new(&*bell, PollFlags::IN)];
        fds.extend(kick.map(|kick| PollFd::new(kick, PollFlags::IN)));
        let left = Timespec::try_from(left).map_err(|e| e.to_string())?;
        match poll(&mut fds, Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.to_string()),
        }
    }
}

/// `ostler.http`: `request` answers `{status=, headers=, body=}`, or nil and why.
///
/// # Errors
/// Lua has no memory left.
pub fn table(lua: &Lua, guard: &Function, context: &Arc<Context>) -> mlua::Result<Table> {
    let http = lua.create_table()?;
    let (c, client) = (Arc::clone(context), Mutex::default());
    http.set(
        "request",
        function(lua, guard, "http.request", move |lua, args| {
            c.outside()?;
            let wanted = wanted(&args, c.deadline.left())?;
            let got = fetch(&client, wanted, c.kick.get().map(AsRef::as_ref));
            // A handler whose call was cut off does not go on.
            c.deadline.check(lua)?;
            match got {
                Ok((status, headers, body)) => {
                    let answer = lua.create_table()?;
                    let named = lua.create_table()?;
                    for (name, value) in joined(headers) {
                        named.raw_set(name, lua.create_string(value)?)?;
                    }
                    answer.raw_set("status", status)?;
                    answer.raw_set("headers", named)?;
                    answer.raw_set("body", lua.create_string(body)?)?;
                    Ok(MultiValue::from_iter([Value::Table(answer)]))
                }
                Err(why) => Ok(MultiValue::from_iter([Value::Nil, Value::String(lua.create_string(why)?)])),
            }
        })?,
    )?;
    Ok(http)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_redirect_leads_where_a_browser_would_go() {
        let from: Uri = "http://a.example:8080/x/y?z=1".parse().unwrap();
        for (location, to) in [
            ("https://b.example/q#part", Some("https://b.example/q")),
            ("//b.example/q", Some("http://b.example/q")),
            ("/q?r", Some("http://a.example:8080/q?r")),
            ("q", Some("http://a.example:8080/x/q")),
            ("?r", Some("http://a.example:8080/x/y?r")),
            ("/q?next=http://b.example/", Some("http://a.example:8080/q?next=http://b.example/")),
            ("file:///etc/passwd", None),
            ("http://", None),
        ] {
            assert_eq!(target(&from, location).map(|u| u.to_string()).as_deref(), to, "{location}");
        }
    }

    #[test]
    fn a_place_is_scheme_host_and_port() {
        let same = |a: &str, b: &str| same_place(&a.parse().unwrap(), &b.parse().unwrap());
        assert!(same("https://A.example/x", "https://a.example:443/y"));
        for other in ["http://a.example/", "https://b.example/", "https://a.example:8443/", "https://a.example.b/"] {
            assert!(!same("https://a.example/", other), "{other}");
        }
        for (url, here) in [
            ("http://localhost/", true),
            ("http://127.9.9.9:1/", true),
            ("http://[::1]:80/", true),
            ("http://localhost.example/", false),
            ("http://127.example/", false),
            ("http://10.0.0.1/", false),
        ] {
            assert_eq!(is_here(&url.parse().unwrap()), here, "{url}");
        }
    }
}
