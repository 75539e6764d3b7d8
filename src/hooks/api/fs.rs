//! `io.open` and `io.lines`, for scripts that are allowed `fs`, below the configured roots.
//!
//! Symbolic links are resolved first, and only regular files are opened, which cannot block a thread.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use mlua::{Function, Lua, MultiValue, Table, UserData, UserDataMethods, Value};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{Args, Context, ScriptError, function, wrong};
use crate::hooks::lock;
use crate::reserved;

/// An open file; `None` once it is closed.
struct Open {
    file: Mutex<Option<BufReader<File>>>,
    most: usize,
}

/// The root of a path, and the path with its links resolved.
fn resolve(path: &Path, roots: &[PathBuf], create: bool) -> Result<(PathBuf, PathBuf), String> {
    let shown = path.display();
    let real = match path.canonicalize() {
        Ok(real) => real,
        Err(e) if create && e.kind() == std::io::ErrorKind::NotFound => {
            let name = path.file_name().ok_or_else(|| format!("{shown}: {e}"))?;
            let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            parent.canonicalize().map_err(|e| format!("{shown}: {e}"))?.join(name)
        }
        Err(e) => return Err(format!("{shown}: {e}")),
    };
    if roots.is_empty() {
        return Ok((PathBuf::from("/"), real));
    }
    let inside = |root: &PathBuf| real != *root && real.starts_with(root);
    match roots.iter().filter_map(|root| root.canonicalize().ok()).find(inside) {
        Some(root) => Ok((root, real)),
        None => Err(format!("{shown}: is outside of hooks.fs_roots")),
    }
}

/// Opens a file below a root. The path has no links left in it: a link that is put there meanwhile is not followed.
fn open_below(root: &Path, real: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let at = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let below = real.strip_prefix(root).map_err(|_| Errno::XDEV)?;
    let mode = if flags.contains(OFlags::CREATE) { Mode::from_raw_mode(0o666) } else { Mode::empty() };
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    crate::sys::open_without_links(&at, below, flags, mode)
}

fn open(path: &str, mode: &str, roots: &[PathBuf]) -> Result<File, String> {
    let letters: String = mode.chars().filter(|c| *c != 'b').collect();
    let flags = match letters.as_str() {
        "r" => OFlags::RDONLY,
        "r+" => OFlags::RDWR,
        "w" => OFlags::WRONLY | OFlags::CREATE,
        "w+" => OFlags::RDWR | OFlags::CREATE,
        "a" => OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND,
        "a+" => OFlags::RDWR | OFlags::CREATE | OFlags::APPEND,
        _ => return Err(format!("{path}: mode '{mode}': r, w or a expected, with + and b after it")),
    };
    let (root, real) = resolve(Path::new(path), roots, !letters.starts_with('r'))?;
    let kept = || format!("{path}: is a file of the daemon's own database");
    // Checked before it is opened: closing it again would drop the daemon's locks on it.
    if std::fs::metadata(&real).is_ok_and(|meta| reserved::is(&meta)) {
        return Err(kept());
    }
    let file = File::from(open_below(&root, &real, flags).map_err(|e| format!("{path}: {e}"))?);
    let meta = file.metadata().map_err(|e| format!("{path}: {e}"))?;
    if reserved::is(&meta) {
        // It was put there in between: a descriptor that stays open is better than a database without locks.
        std::mem::forget(file);
        return Err(kept());
    }
    if !meta.is_file() {
        return Err(format!("{path}: is not a regular file"));
    }
    if letters.starts_with('w') {
        file.set_len(0).map_err(|e| format!("{path}: {e}"))?;
    }
    Ok(file)
}

impl Open {
    fn new(file: File, most: usize) -> Self {
        Self { file: Mutex::new(Some(BufReader::new(file))), most }
    }

    fn with<T>(&self, f: impl FnOnce(&mut BufReader<File>) -> Result<T, ScriptError>) -> Result<T, ScriptError> {
        let mut file = lock(&self.file);
        f(file.as_mut().ok_or_else(|| ScriptError::text("attempt to use a closed file"))?)
    }

    fn close(&self) {
        lock(&self.file).take();
    }

    fn is_open(&self) -> bool {
        lock(&self.file).is_some()
    }

    /// Reads by one format; `None` at the end of the file.
    fn read(&self, lua: &Lua, format: &Value) -> Result<Option<Value>, ScriptError> {
        let bytes = self.with(|file| match format {
            Value::Integer(n) => {
                let want = usize::try_from(*n).unwrap_or(0).min(self.most);
                let mut bytes = Vec::new();
                if want == 0 {
                    return Ok((!file.fill_buf().map_err(failed)?.is_empty()).then_some(bytes));
                }
                file.take(want as u64).read_to_end(&mut bytes).map_err(failed)?;
                Ok((!bytes.is_empty()).then_some(bytes))
            }
            Value::String(s) => match s.as_bytes().strip_prefix(b"*").unwrap_or(&s.as_bytes()) {
                b"a" => {
                    let mut bytes = Vec::new();
                    file.take(self.most as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
                    if bytes.len() > self.most { Err(self.too_much("the file")) } else { Ok(Some(bytes)) }
                }
                kind @ (b"l" | b"L") => self.line(file, kind == b"l"),
                b"n" => number(file).map(Some).map_err(failed),
                _ => Err(ScriptError::text("bad format: a, l, L, n or a count expected")),
            },
            _ => Err(ScriptError::text("bad format: a, l, L, n or a count expected")),
        })?;
        let Some(bytes) = bytes else { return Ok(None) };
        let text = Value::String(lua.create_string(bytes)?);
        let is_number = matches!(format, Value::String(s) if s.as_bytes().ends_with(b"n"));
        if !is_number {
            return Ok(Some(text));
        }
        if let Some(n) = lua.coerce_integer(text.clone())? {
            return Ok(Some(Value::Integer(n)));
        }
        Ok(lua.coerce_number(text)?.map(Value::Number))
    }

    fn line(&self, file: &mut BufReader<File>, cut: bool) -> Result<Option<Vec<u8>>, ScriptError> {
        let mut bytes = Vec::new();
        file.take(self.most as u64 + 1).read_until(b'\n', &mut bytes).map_err(failed)?;
        if bytes.len() > self.most {
            return Err(self.too_much("a line"));
        }
        if bytes.is_empty() {
            return Ok(None);
        }
        if cut && bytes.last() == Some(&b'\n') {
            bytes.pop();
        }
        Ok(Some(bytes))
    }

    fn too_much(&self, what: &str) -> ScriptError {
        ScriptError::text(format!("{what} is longer than {} bytes, half of hooks.memory", self.most))
    }

    fn write(&self, lua: &Lua, args: &Args) -> Result<io::Result<()>, ScriptError> {
        for at in 1..args.len() {
            let value = args.value(at);
            let text = match value {
                Value::String(_) | Value::Integer(_) | Value::Number(_) => lua.coerce_string(value)?,
                other => return Err(wrong("text", "a string", &other)),
            };
            let Some(text) = text else { continue };
            let done = self.with(|file| {
                // The position goes back over what was read ahead.
                Ok(file
                    .stream_position()
                    .and_then(|at| file.seek(SeekFrom::Start(at)))
                    .and_then(|_| file.get_mut().write_all(&text.as_bytes())))
            })?;
            if done.is_err() {
                return Ok(done);
            }
        }
        self.with(|_| Ok(Ok(())))
    }

    fn seek(&self, args: &Args) -> Result<io::Result<u64>, ScriptError> {
        let whence = if args.value(1).is_nil() { "cur".to_owned() } else { args.text(1, "whence")? };
        let offset = args.integer(2, "offset")?.unwrap_or(0);
        let to = match whence.as_str() {
            "set" => match u64::try_from(offset) {
                Ok(offset) => SeekFrom::Start(offset),
                Err(_) => return Ok(Err(io::Error::from(io::ErrorKind::InvalidInput))),
            },
            "cur" => SeekFrom::Current(offset),
            "end" => SeekFrom::End(offset),
            _ => return Err(ScriptError::text("whence: set, cur or end expected")),
        };
        self.with(|file| Ok(file.seek(to)))
    }

    fn read_all(&self, lua: &Lua, formats: &[Value]) -> Result<MultiValue, ScriptError> {
        let line = [Value::String(lua.create_string("l")?)];
        let mut out = MultiValue::new();
        for format in if formats.is_empty() { &line[..] } else { formats } {
            match self.read(lua, format)? {
                Some(value) => out.push_back(value),
                None => {
                    out.push_back(Value::Nil);
                    break;
                }
            }
        }
        Ok(out)
    }
}

/// The text of a numeral, as Lua's `read("n")` takes it: at most 200 bytes.
fn number(file: &mut BufReader<File>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(&c) = file.fill_buf()?.first() {
        if c.is_ascii_whitespace() && bytes.is_empty() {
            file.consume(1);
        } else if (c.is_ascii_alphanumeric() || b"+-.".contains(&c)) && bytes.len() < 200 {
            bytes.push(c);
            file.consume(1);
        } else {
            break;
        }
    }
    Ok(bytes)
}

fn failed(e: io::Error) -> ScriptError {
    ScriptError::text(e.to_string())
}

/// An open file, as scripts hold it.
struct Handle(Arc<Open>);

/// Where a state keeps the methods of its files.
const METHODS: &str = "ostler.file";

impl UserData for Handle {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        // Our own functions, which raise strings with the script's line.
        methods.add_meta_method("__index", |lua, _, name: Value| {
            lua.named_registry_value::<Table>(METHODS)?.raw_get::<Value>(name)
        });
        methods.add_meta_method("__close", |_, this, _: Value| {
            this.0.close();
            Ok(())
        });
        methods
            .add_meta_method("__tostring", |_, this, ()| Ok(if this.0.is_open() { "file" } else { "file (closed)" }));
    }
}

/// The file that a method is called on.
fn this(args: &Args) -> Result<Arc<Open>, ScriptError> {
    match args.value(0) {
        Value::UserData(file) => match file.borrow::<Handle>() {
            Ok(handle) => Ok(Arc::clone(&handle.0)),
            Err(_) => Err(ScriptError::text("a file expected")),
        },
        other => Err(wrong("file", "a file (called with a colon)", &other)),
    }
}

/// A value, or nil and why.
fn or_why(lua: &Lua, done: io::Result<Value>) -> Result<MultiValue, ScriptError> {
    Ok(match done {
        Ok(value) => MultiValue::from_iter([value]),
        Err(e) => MultiValue::from_iter([Value::Nil, Value::String(lua.create_string(e.to_string())?)]),
    })
}

/// What files can do.
fn methods(lua: &Lua, guard: &Function) -> mlua::Result<Table> {
    let table = lua.create_table()?;
    table.set("read", function(lua, guard, "file:read", |lua, args| this(&args)?.read_all(lua, &formats(&args)))?)?;
    let g = guard.clone();
    table.set(
        "lines",
        function(lua, guard, "file:lines", move |lua, args| {
            let (file, formats) = (this(&args)?, formats(&args));
            Ok(function(lua, &g, "file:lines", move |lua, _| file.read_all(lua, &formats))?)
        })?,
    )?;
    table.set(
        "write",
        function(lua, guard, "file:write", |lua, args| {
            let done = this(&args)?.write(lua, &args)?;
            or_why(lua, done.map(|()| args.value(0)))
        })?,
    )?;
    table.set(
        "seek",
        function(lua, guard, "file:seek", |lua, args| {
            let done = this(&args)?.seek(&args)?;
            or_why(lua, done.map(|at| Value::Integer(i64::try_from(at).unwrap_or(i64::MAX))))
        })?,
    )?;
    // Writes are not buffered.
    table.set("flush", function(lua, guard, "file:flush", |_, args| this(&args)?.with(|_| Ok(true)))?)?;
    table.set(
        "close",
        function(lua, guard, "file:close", |_, args| {
            this(&args)?.close();
            Ok(true)
        })?,
    )?;
    Ok(table)
}

/// The formats after the first argument.
fn formats(args: &Args) -> Vec<Value> {
    (1..args.len()).map(|at| args.value(at)).collect()
}

/// The table `io`.
///
/// # Errors
/// Lua has no memory left.
pub fn table(lua: &Lua, guard: &Function, context: &Arc<Context>, roots: &[PathBuf]) -> mlua::Result<Table> {
    let io = lua.create_table()?;
    let (most, allowed) = (context.memory / 2, Arc::<[PathBuf]>::from(roots));
    if lua.named_registry_value::<Value>(METHODS)?.is_nil() {
        lua.set_named_registry_value(METHODS, methods(lua, guard)?)?;
    }
    let below = Arc::clone(&allowed);
    io.set(
        "open",
        function(lua, guard, "io.open", move |lua, args: Args| {
            let path = args.text(0, "path")?;
            let mode = if args.value(1).is_nil() { "r".to_owned() } else { args.text(1, "mode")? };
            match open(&path, &mode, &below) {
                Ok(file) => {
                    let handle = lua.create_userdata(Handle(Arc::new(Open::new(file, most))))?;
                    Ok(MultiValue::from_iter([Value::UserData(handle)]))
                }
                Err(why) => Ok(MultiValue::from_iter([Value::Nil, Value::String(lua.create_string(why)?)])),
            }
        })?,
    )?;
    let g = guard.clone();
    io.set(
        "lines",
        function(lua, guard, "io.lines", move |lua, args: Args| {
            let file = Open::new(open(&args.text(0, "path")?, "r", &allowed).map_err(ScriptError::Text)?, most);
            let formats = formats(&args);
            Ok(function(lua, &g, "io.lines", move |lua, _| {
                if !file.is_open() {
                    return Ok(MultiValue::from_iter([Value::Nil]));
                }
                let values = file.read_all(lua, &formats)?;
                if values.front().is_none_or(Value::is_nil) {
                    file.close();
                }
                Ok(values)
            })?)
        })?,
    )?;
    Ok(io)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_link_that_comes_in_between_is_not_followed() {
        let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir_all(inside.path().join("a/b")).unwrap();
        std::fs::create_dir(outside.path().join("b")).unwrap();
        for (dir, text) in [(inside.path().join("a/b/x"), "mine"), (outside.path().join("b/x"), "secret")] {
            std::fs::write(dir, text).unwrap();
        }
        let roots = [inside.path().to_owned()];
        let (root, real) = resolve(&inside.path().join("a/b/x"), &roots, false).unwrap();
        assert!(open_below(&root, &real, OFlags::RDONLY).is_ok());
        // Found to be inside, and then somebody is quick.
        std::fs::rename(inside.path().join("a"), inside.path().join("old")).unwrap();
        std::os::unix::fs::symlink(outside.path(), inside.path().join("a")).unwrap();
        for flags in [OFlags::RDONLY, OFlags::WRONLY | OFlags::CREATE] {
            assert_eq!(open_below(&root, &real, flags).unwrap_err().raw_os_error(), Some(Errno::LOOP.raw_os_error()));
        }
        assert!(open(inside.path().join("a/b/x").to_str().unwrap(), "r", &roots).unwrap_err().contains("is outside"));
    }
}
