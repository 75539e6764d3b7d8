//! `ostler.exec{}`: one program, without a shell, in a session of its own whose group is killed when time is up.

use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use super::{Args, Context, ScriptError, duration, function, wrong};
use crate::awake::Span;
use crate::hooks::kick::Kick;
use crate::proc::{NoChild, PipedChild};
use mlua::{Function, Lua, MultiValue, Value};

/// The most bytes that are kept of stdout and of stderr; the rest is read and thrown away.
const OUTPUT: usize = 4 * 1024 * 1024;
/// How long a program may take, unless the script or its own deadline says otherwise.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How often the pipes are read after the exit: a process that left the group may go on writing.
const LAST_READS: usize = 8;

struct CommandArgs {
    argv: Vec<std::ffi::OsString>,
    stdin: Vec<u8>,
    timeout: Duration,
}

fn wanted(args: &Args, left: Option<Duration>) -> Result<CommandArgs, ScriptError> {
    use std::os::unix::ffi::OsStringExt;
    let Some(options) = args.options(0, &["argv", "stdin", "timeout"])? else {
        return Err(ScriptError::text("a table expected: exec{argv=, stdin=, timeout=}"));
    };
    let Value::Table(list) = options.raw_get::<Value>("argv")? else {
        return Err(ScriptError::text("argv: a list of strings expected"));
    };
    let mut argv = Vec::new();
    for i in 1..=list.raw_len() {
        let bytes = match list.raw_get::<Value>(i)? {
            Value::String(s) => s.as_bytes().to_vec(),
            Value::Integer(n) => n.to_string().into_bytes(),
            other => return Err(wrong(&format!("argv[{i}]"), "a string", &other)),
        };
        if bytes.contains(&0) {
            return Err(ScriptError::text(format!("argv[{i}]: contains a NUL byte")));
        }
        argv.push(std::ffi::OsString::from_vec(bytes));
    }
    if argv.is_empty() {
        return Err(ScriptError::text("argv: is empty"));
    }
    let stdin = match options.raw_get::<Value>("stdin")? {
        Value::Nil => Vec::new(),
        Value::String(s) => s.as_bytes().to_vec(),
        other => return Err(wrong("stdin", "a string", &other)),
    };
    let timeout = match options.raw_get::<Value>("timeout")? {
        Value::Nil => TIMEOUT,
        v => duration(&v, "timeout")?,
    };
    Ok(CommandArgs { argv, stdin, timeout: left.map_or(timeout, |left| left.min(timeout)) })
}

/// The output of a program.
#[derive(Default)]
struct Output {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Output {
    fn take_in(&mut self, child: &mut PipedChild) {
        let keep =
            |kept: &mut Vec<u8>, bytes: &[u8]| kept.extend_from_slice(&bytes[..bytes.len().min(OUTPUT - kept.len())]);
        let (stdout, stderr) = (&mut self.stdout, &mut self.stderr);
        child.take_in(&mut |bytes| keep(stdout, bytes), &mut |bytes| keep(stderr, bytes));
    }
}

/// Runs a program to its end; however that comes, its whole group is killed and it is reaped.
fn run(wanted: &CommandArgs, kick: Option<&Kick>) -> Result<(ExitStatus, Output), String> {
    let awake = Span::begin();
    let name = wanted.argv[0].to_string_lossy();
    let mut command = Command::new(&wanted.argv[0]);
    command.args(&wanted.argv[1..]).env_clear();
    for (key, fallback) in [("PATH", "/usr/local/bin:/usr/bin:/bin"), ("HOME", "/"), ("LANG", "C.UTF-8")] {
        command.env(key, std::env::var_os(key).unwrap_or_else(|| fallback.into()));
    }
    let mut child = PipedChild::spawn(&mut command, 0)
        .map_err(|(NoChild::NotStarted(e) | NoChild::NotWatched(e))| format!("{name}: {e}"))?;
    child.send(&wanted.stdin);
    child.finish_input();
    let outcome = read_output(&mut child, kick, &|| awake.left(wanted.timeout));
    let status = child.end();
    match outcome {
        Ok(output) => Ok((status.map_err(|e| format!("{name}: {e}"))?, output)),
        Err(End::Failed(e)) => Err(format!("{name}: {e}")),
        Err(End::Kicked) => Err(format!("{name}: cut off because the daemon stops")),
        Err(End::TimedOut) => Err(format!("{name}: timed out after {:?}", wanted.timeout)),
    }
}

/// Why a program is not waited for any more.
enum End {
    Failed(std::io::Error),
    Kicked,
    TimedOut,
}

/// Reads what a program writes until it exits.
fn read_output(child: &mut PipedChild, kick: Option<&Kick>, left: &dyn Fn() -> Duration) -> Result<Output, End> {
    let mut output = Output::default();
    while !child.has_exited() {
        child.wait(kick.map(AsFd::as_fd), left()).map_err(End::Failed)?;
        output.take_in(child);
        if !child.has_exited() {
            if kick.is_some_and(Kick::is_kicked) {
                return Err(End::Kicked);
            }
            if left().is_zero() {
                return Err(End::TimedOut);
            }
        }
    }
    for _ in 0..LAST_READS {
        output.take_in(child);
    }
    Ok(output)
}

/// `ostler.exec`: answers `{status=, signal=, stdout=, stderr=}`, or nil and why.
///
/// # Errors
/// Lua has no memory left.
pub fn constructor(lua: &Lua, guard: &Function, context: &Arc<Context>) -> mlua::Result<Function> {
    let c = Arc::clone(context);
    function(lua, guard, "exec", move |lua, args| {
        c.outside()?;
        let ran = run(&wanted(&args, c.deadline.left())?, c.kick.get().map(AsRef::as_ref));
        // A handler whose call was cut off does not go on.
        c.deadline.check(lua)?;
        match ran {
            Ok((status, output)) => {
                let answer = lua.create_table()?;
                answer.raw_set("status", status.code())?;
                answer.raw_set("signal", status.signal())?;
                answer.raw_set("stdout", lua.create_string(output.stdout)?)?;
                answer.raw_set("stderr", lua.create_string(output.stderr)?)?;
                Ok(MultiValue::from_iter([Value::Table(answer)]))
            }
            Err(why) => Ok(MultiValue::from_iter([Value::Nil, Value::String(lua.create_string(why)?)])),
        }
    })
}
