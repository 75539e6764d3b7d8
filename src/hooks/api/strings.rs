//! `string.find`, `match`, `gmatch` and `gsub` over our own matcher, for the prelude.

use std::sync::Arc;

use mlua::{Lua, LuaString, MultiValue, Table, Value};

use super::{Args, Context, ScriptError, locate, raw_function};
use crate::hooks::pattern::{Capture, Matcher, is_plain};

/// The table of functions that the prelude is given.
///
/// # Errors
/// Lua has no memory left.
pub fn primitives(lua: &Lua, context: &Arc<Context>) -> mlua::Result<Table> {
    let table = lua.create_table()?;
    let deadline = Arc::clone(&context.deadline);
    table.set("check", lua.create_function(move |lua, ()| deadline.check(lua))?)?;
    table.set("locate", lua.create_function(|lua, ()| Ok(locate(lua)))?)?;
    table.set("traceback", lua.create_function(|lua, ()| lua.traceback(None, 2))?)?;
    let c = Arc::clone(context);
    table.set("find", raw_function(lua, "", move |lua, args| find(lua, &c, &args, true))?)?;
    let c = Arc::clone(context);
    table.set("match", raw_function(lua, "", move |lua, args| find(lua, &c, &args, false))?)?;
    let c = Arc::clone(context);
    table.set("step", raw_function(lua, "", move |lua, args| step(lua, &c, &args))?)?;
    let c = Arc::clone(context);
    table.set("gsub", raw_function(lua, "", move |lua, args| gsub(lua, &c, &args))?)?;
    Ok(table)
}

/// Lua's rule for a place in a string, as an offset from 0.
fn offset(init: Option<i64>, len: usize) -> usize {
    let init = init.unwrap_or(1);
    if init > 0 {
        usize::try_from(init - 1).unwrap_or(usize::MAX)
    } else if init == 0 {
        0
    } else {
        usize::try_from(init.unsigned_abs()).map_or(0, |back| len.saturating_sub(back))
    }
}

fn int(n: usize) -> Value {
    Value::Integer(i64::try_from(n).unwrap_or(i64::MAX))
}

fn capture(lua: &Lua, subject: &[u8], capture: Capture) -> Result<Value, ScriptError> {
    Ok(match capture {
        Capture::Unfinished => return Err(ScriptError::text("unfinished capture")),
        Capture::Position(at) => int(at + 1),
        Capture::Span(a, b) => Value::String(lua.create_string(&subject[a..b])?),
    })
}

fn find(lua: &Lua, context: &Context, args: &Args, positions: bool) -> Result<MultiValue, ScriptError> {
    let (subject, pattern) = (args.bytes(lua, 0, "string")?, args.bytes(lua, 1, "pattern")?);
    let from = offset(args.integer(2, "init")?, subject.as_bytes().len());
    let plain = !matches!(args.value(3), Value::Nil | Value::Boolean(false));
    let mut out = MultiValue::new();
    let (s, p) = (subject.as_bytes(), pattern.as_bytes());
    if from > s.len() {
        out.push_back(Value::Nil);
        return Ok(out);
    }
    if positions && (plain || is_plain(&p)) {
        match memchr::memmem::find(&s[from..], &p) {
            Some(at) => out.extend([int(from + at + 1), int(from + at + p.len())]),
            None => out.push_back(Value::Nil),
        }
        return Ok(out);
    }
    let (anchored, p) = unanchored(&p);
    let past = || context.deadline.past();
    let Some(found) = Matcher::new(&s, p, &past).next(from, anchored, None)? else {
        out.push_back(Value::Nil);
        return Ok(out);
    };
    if positions {
        out.extend([int(found.start + 1), int(found.end)]);
    }
    let captures = if positions { found.captures } else { found.values() };
    for c in captures {
        out.push_back(capture(lua, &s, c)?);
    }
    Ok(out)
}

fn unanchored(pattern: &[u8]) -> (bool, &[u8]) {
    pattern.strip_prefix(b"^").map_or((false, pattern), |rest| (true, rest))
}

/// One step of `gmatch` or of `gsub` with a function or a table. Takes the subject, the pattern, where to begin, where
/// the previous match ended (both from 1), whether `^` is an anchor, and whether only the first capture is needed (a
/// table's key: the others may be unfinished, as in Lua). Answers where the match begins, where the next may begin, and
/// the captures.
fn step(lua: &Lua, context: &Context, args: &Args) -> Result<MultiValue, ScriptError> {
    let (subject, pattern) = (args.bytes(lua, 0, "string")?, args.bytes(lua, 1, "pattern")?);
    let from = offset(args.integer(2, "init")?, subject.as_bytes().len());
    let last = args.integer(3, "last")?.and_then(|n| usize::try_from(n - 1).ok());
    let (s, p) = (subject.as_bytes(), pattern.as_bytes());
    let (anchored, p) = if args.value(4) == Value::Boolean(true) { unanchored(&p) } else { (false, &*p) };
    let past = || context.deadline.past();
    let mut out = MultiValue::new();
    if let Some(found) = Matcher::new(&s, p, &past).next(from, anchored, last)? {
        out.extend([int(found.start + 1), int(found.end + 1)]);
        let wanted = if args.value(5) == Value::Boolean(true) { 1 } else { usize::MAX };
        for c in found.values().into_iter().take(wanted) {
            out.push_back(capture(lua, &s, c)?);
        }
    }
    Ok(out)
}

/// `gsub` with a replacement text.
fn gsub(lua: &Lua, context: &Context, args: &Args) -> Result<(LuaString, i64), ScriptError> {
    let subject = args.bytes(lua, 0, "string")?;
    let (pattern, by) = (args.bytes(lua, 1, "pattern")?, args.bytes(lua, 2, "replacement")?);
    let most = args.integer(3, "n")?;
    let (s, p, by) = (subject.as_bytes(), pattern.as_bytes(), by.as_bytes());
    let (anchored, p) = unanchored(&p);
    let past = || context.deadline.past();
    let mut matcher = Matcher::new(&s, p, &past);
    let (mut out, mut at, mut last, mut times) = (Vec::new(), 0, None, 0_i64);
    while most.is_none_or(|n| times < n) {
        let Some(found) = matcher.next(at, anchored, last)? else { break };
        times += 1;
        out.extend_from_slice(&s[at..found.start]);
        expand(&mut out, &s, &found, &by, context)?;
        at = found.end;
        last = Some(found.end);
        if anchored {
            break;
        }
    }
    if times == 0 {
        return Ok((subject.clone(), 0));
    }
    out.extend_from_slice(&s[at..]);
    Ok((lua.create_string(&out)?, times))
}

/// Appends a replacement, with the captures for `%0` to `%9`.
fn expand(
    out: &mut Vec<u8>,
    subject: &[u8],
    found: &crate::hooks::pattern::Match,
    by: &[u8],
    context: &Context,
) -> Result<(), ScriptError> {
    let values = found.values();
    let mut rest = by;
    let mut steps = 0_u32;
    while let Some(at) = memchr::memchr(b'%', rest) {
        steps += 1;
        if steps.is_multiple_of(4096) && context.deadline.past() {
            return Err(ScriptError::text("timeout"));
        }
        out.extend_from_slice(&rest[..at]);
        match rest.get(at + 1) {
            Some(b'%') => out.push(b'%'),
            Some(b'0') => out.extend_from_slice(&subject[found.start..found.end]),
            Some(digit) if digit.is_ascii_digit() => match values.get(usize::from(digit - b'1')) {
                Some(Capture::Position(p)) => out.extend_from_slice((p + 1).to_string().as_bytes()),
                Some(Capture::Span(a, b)) => out.extend_from_slice(&subject[*a..*b]),
                Some(Capture::Unfinished) => return Err(ScriptError::text("unfinished capture")),
                None => {
                    let n = char::from(*digit);
                    return Err(ScriptError::text(format!("invalid capture index %{n} in replacement string")));
                }
            },
            _ => return Err(ScriptError::text("invalid use of '%' in replacement string")),
        }
        if out.len() > context.memory {
            return Err(ScriptError::Lua(mlua::Error::MemoryError("not enough memory".to_owned())));
        }
        rest = &rest[at + 2..];
    }
    out.extend_from_slice(rest);
    if out.len() > context.memory {
        return Err(ScriptError::Lua(mlua::Error::MemoryError("not enough memory".to_owned())));
    }
    Ok(())
}
