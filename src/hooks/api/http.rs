//! `ostler.http.request{}`: one request, bounded in time and size. TLS is verified against the system's roots.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use mlua::{Function, Lua, MultiValue, Table, Value};
use ureq::tls::{RootCerts, TlsConfig};

use super::{Args, Context, Fault, duration, function, text, wrong};

/// The most that is read of an answer, in bytes.
const BODY: u64 = 8 * 1024 * 1024;
/// How long a request may take, unless the script or its own deadline says otherwise.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The client of a state: connections are kept between requests.
fn client() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(5)
        .max_response_header_size(64 * 1024)
        .max_idle_connections(4)
        .allow_non_standard_methods(true)
        .user_agent(concat!("ostler/", env!("CARGO_PKG_VERSION")))
        .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
        .build()
        .new_agent()
}

/// What a script asks for.
struct Wanted {
    request: ureq::http::Request<Vec<u8>>,
    timeout: Duration,
}

fn wanted(args: &Args, left: Option<Duration>) -> Result<Wanted, Fault> {
    let Some(options) = args.options(0, &["url", "method", "headers", "body", "timeout"])? else {
        return Err(Fault::text("a table expected: request{url=, method=, headers=, body=, timeout=}"));
    };
    let url = text(&options.raw_get::<Value>("url")?, "url")?;
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return Err(Fault::text(format!("url: '{url}': http:// or https:// expected")));
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
    let mut request = ureq::http::Request::builder().method(method.as_str()).uri(&url);
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
    let request = request.body(body.unwrap_or_default()).map_err(|e| Fault::text(e.to_string()))?;
    Ok(Wanted { request, timeout: left.map_or(timeout, |left| left.min(timeout)) })
}

type Got = (u16, Vec<(String, Vec<u8>)>, Vec<u8>);

/// A header that came several times is one, its values after commas.
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

fn fetch(client: &ureq::Agent, wanted: Wanted) -> Result<Got, String> {
    let wrapped = client.configure_request(wanted.request).timeout_global(Some(wanted.timeout)).build();
    let mut response = client.run(wrapped).map_err(|e| e.to_string())?;
    let headers = response.headers().iter().map(|(n, v)| (n.as_str().to_owned(), v.as_bytes().to_vec())).collect();
    let body = response.body_mut().with_config().limit(BODY).read_to_vec().map_err(|e| e.to_string())?;
    Ok((response.status().as_u16(), headers, body))
}

/// `ostler.http`: `request` answers `{status=, headers=, body=}`, or nil and why.
///
/// # Errors
/// Lua has no memory left.
pub fn table(lua: &Lua, guard: &Function, context: &Arc<Context>) -> mlua::Result<Table> {
    let http = lua.create_table()?;
    let (c, client) = (Arc::clone(context), std::sync::OnceLock::new());
    http.set(
        "request",
        function(lua, guard, "http.request", move |lua, args| {
            c.outside()?;
            let wanted = wanted(&args, c.deadline.left())?;
            match fetch(client.get_or_init(self::client), wanted) {
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
