//! Which globals a script uses: its compiled form names each access to `_ENV`.
//!
//! Reads only bytecode that we compiled ourselves a moment ago, and only for warnings: accesses in a function with more
//! than 255 constants are compiled differently and not seen. The layout is that of Lua 5.4 (`ldump.c`).

use std::collections::{BTreeMap, BTreeSet};

use mlua::Value;

use super::sandbox::{Allowed, Sandbox};
use crate::config;

const GET_TAB_UP: u32 = 11;
const SET_TAB_UP: u32 = 15;
/// In the line table: look into the absolute one.
const ABSOLUTE: i8 = i8::MIN;
/// Functions nest no deeper: Lua's own limit.
const DEPTH: usize = 200;

/// The first line in which each global is read and written.
#[derive(Debug, Default, PartialEq, Eq)]
struct Uses {
    read: BTreeMap<String, usize>,
    written: BTreeMap<String, usize>,
}

/// Warnings, each with its line: globals that do not exist, and those that nobody reads.
///
/// # Errors
/// The script does not compile.
pub(crate) fn undefined_names(text: &str, name: &str, config: &config::Hooks) -> mlua::Result<Vec<(usize, String)>> {
    let sandbox = Sandbox::new(config, Allowed::of(config), "")?;
    let (env, _) = sandbox.globals().make(sandbox.lua())?;
    let mut known = BTreeSet::from(["require".to_owned()]);
    for pair in env.pairs::<Value, Value>() {
        if let (Value::String(name), _) = pair? {
            known.insert(name.to_string_lossy());
        }
    }
    let binary = sandbox.compile(name, text, env)?.dump(false);
    let uses = read(&binary).unwrap_or_default();
    let mut found = Vec::new();
    for (global, line) in &uses.read {
        if !known.contains(global) && !uses.written.contains_key(global) {
            let hint = if global == "io" { ": add \"fs\" to allow in [hooks]" } else { "" };
            found.push((*line, format!("global '{global}' does not exist{hint}")));
        }
    }
    for (global, line) in &uses.written {
        if known.contains(global) {
            found.push((*line, format!("global '{global}' of the sandbox is overwritten")));
        } else if !uses.read.contains_key(global) {
            found.push((*line, format!("global '{global}' is set and never read: is `local` missing?")));
        }
    }
    found.sort();
    Ok(found)
}

fn read(binary: &[u8]) -> Option<Uses> {
    let mut reader = Reader { rest: binary };
    // Signature, version, format, check bytes, three sizes, an integer and a number; then the count of upvalues.
    let header = reader.take(4 + 1 + 1 + 6 + 3 + 8 + 8)?;
    if header.get(..6)? != b"\x1bLua\x54\x00" {
        return None;
    }
    reader.take(1)?;
    let mut uses = Uses::default();
    reader.function(&mut uses, 0)?;
    Some(uses)
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    /// Seven bits a byte, the highest first; the last byte has its top bit set.
    fn int(&mut self) -> Option<usize> {
        let mut n = 0_usize;
        loop {
            let b = self.byte()?;
            n = n.checked_mul(128)?.checked_add(usize::from(b & 0x7f))?;
            if b & 0x80 != 0 {
                return Some(n);
            }
        }
    }

    fn string(&mut self) -> Option<String> {
        match self.int()? {
            0 => Some(String::new()),
            n => Some(String::from_utf8_lossy(self.take(n - 1)?).into_owned()),
        }
    }

    fn constant(&mut self) -> Option<String> {
        match self.byte()? {
            0x03 | 0x13 => self.take(8).map(|_| String::new()),
            0x04 | 0x14 => self.string(),
            _ => Some(String::new()),
        }
    }

    fn function(&mut self, uses: &mut Uses, depth: usize) -> Option<()> {
        if depth > DEPTH {
            return None;
        }
        self.string()?;
        let first_line = self.int()?;
        self.int()?;
        self.take(3)?;
        let count = self.int()?;
        let code = self.take(count.checked_mul(4)?)?;
        let constants = (0..self.int()?).map(|_| self.constant()).collect::<Option<Vec<_>>>()?;
        let upvalues = self.int()?;
        self.take(upvalues.checked_mul(3)?)?;
        for _ in 0..self.int()? {
            self.function(uses, depth + 1)?;
        }
        let deltas = self.int()?;
        let deltas = self.take(deltas)?;
        let mut absolute = BTreeMap::new();
        for _ in 0..self.int()? {
            absolute.insert(self.int()?, self.int()?);
        }
        for _ in 0..self.int()? {
            self.string()?;
            self.int()?;
            self.int()?;
        }
        let names = (0..self.int()?).map(|_| self.string()).collect::<Option<Vec<_>>>()?;
        let mut line = first_line;
        for (pc, word) in code.chunks_exact(4).enumerate() {
            line = match deltas.get(pc).map(|d| i8::from_ne_bytes([*d])) {
                Some(ABSOLUTE) => absolute.get(&pc).copied().unwrap_or(line),
                Some(delta) => line.saturating_add_signed(isize::from(delta)),
                None => line,
            };
            let word = u32::from_ne_bytes(word.try_into().ok()?);
            let part = |shift: u32| usize::try_from(word >> shift & 0xff).unwrap_or(0);
            let (op, a, b, c) = (word & 0x7f, part(7), part(16), part(24));
            let (upvalue, key, map) = match op {
                GET_TAB_UP => (b, c, &mut uses.read),
                SET_TAB_UP => (a, b, &mut uses.written),
                _ => continue,
            };
            if names.get(upvalue).is_some_and(|n| n == "_ENV")
                && let Some(name) = constants.get(key)
            {
                let first = map.entry(name.clone()).or_insert(line);
                *first = line.min(*first);
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn globals_are_found_with_their_lines() {
        let lua = mlua::Lua::new();
        let text = "local a = 1\nb = a\nlocal function f()\n  return function() c(b) d = 1 end\nend\nfor i = 1, 3 do\n\n  e()\nend";
        let uses = read(&lua.load(text).into_function().unwrap().dump(false)).unwrap();
        let lines =
            |map: &BTreeMap<String, usize>| map.iter().map(|(n, l)| format!("{n}{l}")).collect::<Vec<_>>().join(" ");
        assert_eq!(lines(&uses.read), "b4 c4 e8");
        assert_eq!(lines(&uses.written), "b2 d4");
        // Far apart, the line table turns absolute.
        let far = format!("x()\n{}y()\n{}z()", "\n".repeat(1000), "local q = 1\n".repeat(150));
        let uses = read(&lua.load(far).into_function().unwrap().dump(false)).unwrap();
        assert_eq!(lines(&uses.read), "x1 y1002 z1153");
        assert_eq!(read(b"\x1bLua\x54\x00truncated"), None);
    }
}
