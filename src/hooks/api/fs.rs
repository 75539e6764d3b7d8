//! `io.open` and `io.lines`, for scripts with leave for `fs`, below the configured roots.
//!
//! Symbolic links are resolved first, and what is opened is a regular file: nothing that could block a thread.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use mlua::{AnyUserData, Function, Lua, MultiValue, Table, UserData, UserDataMethods, UserDataRef, Value, Variadic};
use rustix::fs::OFlags;

use super::{Args, Context, Fault, function};
use crate::hooks::lock;

/// An open file; `None` once it is closed.
struct Open {
    file: Mutex<Option<BufReader<File>>>,
    most: usize,
}

/// Where a path leads, with its links resolved, if that is below a root.
fn resolve(path: &Path, roots: &[PathBuf], create: bool) -> Result<PathBuf, String> {
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
    let inside = roots.is_empty()
        || roots.iter().any(|root| root.canonicalize().is_ok_and(|root| real != root && real.starts_with(&root)));
    if inside { Ok(real) } else { Err(format!("{shown}: is outside of hooks.fs_roots")) }
}

fn open(path: &str, mode: &str, roots: &[PathBuf]) -> Result<File, String> {
    let letters: String = mode.chars().filter(|c| *c != 'b').collect();
    let mut how = OpenOptions::new();
    match letters.as_str() {
        "r" => how.read(true),
        "r+" => how.read(true).write(true),
        "w" => how.write(true).create(true),
        "w+" => how.read(true).write(true).create(true),
        "a" => how.append(true).create(true),
        "a+" => how.read(true).append(true).create(true),
        _ => return Err(format!("{path}: mode '{mode}': r, w or a expected, with + and b after it")),
    };
    let real = resolve(Path::new(path), roots, !letters.starts_with('r'))?;
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    how.custom_flags(i32::try_from(flags.bits()).unwrap_or(0));
    let file = how.open(&real).map_err(|e| format!("{path}: {e}"))?;
    if !file.metadata().map_err(|e| format!("{path}: {e}"))?.is_file() {
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

    fn with<T>(&self, f: impl FnOnce(&mut BufReader<File>) -> mlua::Result<T>) -> mlua::Result<T> {
        let mut file = lock(&self.file);
        f(file.as_mut().ok_or_else(|| mlua::Error::runtime("attempt to use a closed file"))?)
    }

    /// Reads by one format; `None` at the end of the file.
    fn read(&self, lua: &Lua, format: &Value) -> mlua::Result<Option<Value>> {
        let bytes = self.with(|file| match format {
            Value::Integer(n) => {
                let want = usize::try_from(*n).unwrap_or(0).min(self.most);
                let mut bytes = Vec::new();
                if want == 0 {
                    return Ok((!file.fill_buf()?.is_empty()).then_some(bytes));
                }
                file.take(want as u64).read_to_end(&mut bytes)?;
                Ok((!bytes.is_empty()).then_some(bytes))
            }
            Value::String(s) => match s.as_bytes().strip_prefix(b"*").unwrap_or(&s.as_bytes()) {
                b"a" => {
                    let mut bytes = Vec::new();
                    file.take(self.most as u64 + 1).read_to_end(&mut bytes)?;
                    if bytes.len() > self.most {
                        return Err(mlua::Error::MemoryError("the file is larger than hooks.memory".to_owned()));
                    }
                    Ok(Some(bytes))
                }
                kind @ (b"l" | b"L") => {
                    let mut bytes = Vec::new();
                    file.take(self.most as u64).read_until(b'\n', &mut bytes)?;
                    if bytes.is_empty() {
                        return Ok(None);
                    }
                    if kind == b"l" && bytes.last() == Some(&b'\n') {
                        bytes.pop();
                    }
                    Ok(Some(bytes))
                }
                b"n" => number(file),
                _ => Err(mlua::Error::runtime("bad format: a, l, L, n or a count expected")),
            },
            _ => Err(mlua::Error::runtime("bad format: a, l, L, n or a count expected")),
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

    fn read_all(&self, lua: &Lua, formats: &[Value]) -> mlua::Result<MultiValue> {
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
fn number(file: &mut BufReader<File>) -> mlua::Result<Option<Vec<u8>>> {
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
    Ok(Some(bytes))
}

impl UserData for Open {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_method("read", |lua, this, formats: Variadic<Value>| this.read_all(lua, &formats));
        methods.add_function("write", |lua, (this, values): (AnyUserData, Variadic<Value>)| {
            let open = this.borrow::<Self>()?;
            for value in values.iter() {
                let Some(text) = lua.coerce_string(value.clone())? else {
                    return Err(mlua::Error::runtime(format!("write: a string expected, got {}", value.type_name())));
                };
                let done = open.with(|file| {
                    // What was read ahead is given back first.
                    file.stream_position().and_then(|at| file.seek(SeekFrom::Start(at)))?;
                    Ok(file.get_mut().write_all(&text.as_bytes()))
                })?;
                if let Err(e) = done {
                    return Ok((Value::Nil, Some(e.to_string())));
                }
            }
            drop(open);
            Ok((Value::UserData(this), None))
        });
        methods.add_function("lines", |lua, (this, formats): (UserDataRef<Self>, Variadic<Value>)| {
            lua.create_function(move |lua, ()| this.read_all(lua, &formats))
        });
        methods.add_method("flush", |_, this, ()| this.with(|_| Ok(true)));
        methods.add_method("seek", |_, this, (whence, offset): (Option<String>, Option<i64>)| {
            let offset = offset.unwrap_or(0);
            let to = match whence.as_deref().unwrap_or("cur") {
                "set" => SeekFrom::Start(u64::try_from(offset).unwrap_or(0)),
                "cur" => SeekFrom::Current(offset),
                "end" => SeekFrom::End(offset),
                _ => return Err(mlua::Error::runtime("seek: set, cur or end expected")),
            };
            this.with(|file| Ok(file.seek(to)?))
        });
        methods.add_method("close", |_, this, ()| {
            lock(&this.file).take();
            Ok(true)
        });
        methods.add_meta_method("__close", |_, this, _: Value| {
            lock(&this.file).take();
            Ok(())
        });
        methods.add_meta_method("__tostring", |_, this, ()| {
            Ok(if lock(&this.file).is_some() { "file" } else { "file (closed)" })
        });
    }
}

/// The table `io`.
///
/// # Errors
/// Lua has no memory left.
pub fn table(lua: &Lua, guard: &Function, context: &Arc<Context>, roots: &[PathBuf]) -> mlua::Result<Table> {
    let io = lua.create_table()?;
    let (most, allowed) = (context.memory / 2, Arc::<[PathBuf]>::from(roots));
    let below = Arc::clone(&allowed);
    io.set(
        "open",
        function(lua, guard, "io.open", move |lua, args: Args| {
            let path = args.text(0, "path")?;
            let mode = if args.value(1).is_nil() { "r".to_owned() } else { args.text(1, "mode")? };
            match open(&path, &mode, &below) {
                Ok(file) => {
                    let open = lua.create_userdata(Open::new(file, most))?;
                    Ok(MultiValue::from_iter([Value::UserData(open)]))
                }
                Err(why) => Ok(MultiValue::from_iter([Value::Nil, Value::String(lua.create_string(why)?)])),
            }
        })?,
    )?;
    io.set(
        "lines",
        function(lua, guard, "io.lines", move |lua, args: Args| {
            let file = Open::new(open(&args.text(0, "path")?, "r", &allowed).map_err(Fault::Text)?, most);
            let formats: Vec<Value> = (1..).map(|i| args.value(i)).take_while(|v| !v.is_nil()).collect();
            Ok(lua.create_function(move |lua, ()| {
                if lock(&file.file).is_none() {
                    return Ok(MultiValue::from_iter([Value::Nil]));
                }
                let values = file.read_all(lua, &formats)?;
                if values.front().is_none_or(Value::is_nil) {
                    lock(&file.file).take();
                }
                Ok(values)
            })?)
        })?,
    )?;
    Ok(io)
}
