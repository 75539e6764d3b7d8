//! `ostler.exec{}`: one program, without a shell, in a session of its own whose group is killed when time is up.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use mlua::{Function, Lua, MultiValue, Value};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::{Args, Context, Fault, duration, function, wrong};
use crate::awake::Span;
use crate::hooks::kick::Kick;

/// The most that is kept of each of stdout and stderr, in bytes; what is beyond is read and thrown away.
const OUTPUT: usize = 4 * 1024 * 1024;
/// How long a program may take, unless the script or its own deadline says otherwise.
const TIMEOUT: Duration = Duration::from_secs(30);

struct Wanted {
    argv: Vec<std::ffi::OsString>,
    stdin: Vec<u8>,
    timeout: Duration,
}

fn wanted(args: &Args, left: Option<Duration>) -> Result<Wanted, Fault> {
    use std::os::unix::ffi::OsStringExt;
    let Some(options) = args.options(0, &["argv", "stdin", "timeout"])? else {
        return Err(Fault::text("a table expected: exec{argv=, stdin=, timeout=}"));
    };
    let Value::Table(list) = options.raw_get::<Value>("argv")? else {
        return Err(Fault::text("argv: a list of strings expected"));
    };
    let mut argv = Vec::new();
    for i in 1..=list.raw_len() {
        let bytes = match list.raw_get::<Value>(i)? {
            Value::String(s) => s.as_bytes().to_vec(),
            Value::Integer(n) => n.to_string().into_bytes(),
            other => return Err(wrong(&format!("argv[{i}]"), "a string", &other)),
        };
        if bytes.contains(&0) {
            return Err(Fault::text(format!("argv[{i}]: has a NUL in it")));
        }
        argv.push(std::ffi::OsString::from_vec(bytes));
    }
    if argv.is_empty() {
        return Err(Fault::text("argv: is empty"));
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
    Ok(Wanted { argv, stdin, timeout: left.map_or(timeout, |left| left.min(timeout)) })
}

/// A program that runs; however it is left, its whole group is killed and it is reaped.
struct Running {
    child: Child,
    reaped: bool,
}

impl Running {
    /// Kills what is left of the group and reaps the leader, in this order: until it is reaped, its id is nobody
    /// else's.
    fn end(&mut self) -> std::io::Result<ExitStatus> {
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
            && !self.reaped
        {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let status = self.child.wait()?;
        self.reaped = true;
        Ok(status)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

struct Ran {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

fn run(wanted: &Wanted, kick: Option<&Kick>) -> Result<Ran, String> {
    let awake = Span::begin();
    let name = wanted.argv[0].to_string_lossy().into_owned();
    let mut command = Command::new(&wanted.argv[0]);
    command.args(&wanted.argv[1..]).env_clear();
    crate::proc::set_apart(&mut command, 0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for (key, fallback) in [("PATH", "/usr/local/bin:/usr/bin:/bin"), ("HOME", "/"), ("LANG", "C.UTF-8")] {
        command.env(key, std::env::var_os(key).unwrap_or_else(|| fallback.into()));
    }
    let (child, _registered) = crate::proc::spawn(&mut command).map_err(|e| format!("{name}: {e}"))?;
    let mut running = Running { child, reaped: false };
    let pid = i32::try_from(running.child.id()).ok().and_then(Pid::from_raw).ok_or("no process id")?;
    let ended = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| format!("{name}: {e}"))?;
    let mut pipes = Pipes::new(&mut running.child).map_err(|e| format!("{name}: {e}"))?;
    loop {
        let over =
            pipes.turn(&ended, kick, &wanted.stdin, awake.left(wanted.timeout)).map_err(|e| format!("{name}: {e}"))?;
        if over {
            break;
        }
        if kick.is_some_and(Kick::is_kicked) {
            return Err(format!("{name}: cut off, for the daemon stops"));
        }
        if awake.left(wanted.timeout).is_zero() {
            return Err(format!("{name}: timed out after {:?}", wanted.timeout));
        }
    }
    pipes.drain().map_err(|e| format!("{name}: {e}"))?;
    let status = running.end().map_err(|e| format!("{name}: {e}"))?;
    Ok(Ran { status, stdout: std::mem::take(&mut pipes.stdout), stderr: std::mem::take(&mut pipes.stderr) })
}

/// The three pipes, none of which may block.
struct Pipes {
    input: Option<std::process::ChildStdin>,
    written: usize,
    out: Option<std::process::ChildStdout>,
    err: Option<std::process::ChildStderr>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Pipes {
    fn new(child: &mut Child) -> std::io::Result<Self> {
        let (input, out, err) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let fds = [input.as_ref().map(AsFd::as_fd), out.as_ref().map(AsFd::as_fd), err.as_ref().map(AsFd::as_fd)];
        for fd in fds.into_iter().flatten() {
            rustix::io::ioctl_fionbio(fd, true)?;
        }
        Ok(Self { input, written: 0, out, err, stdout: Vec::new(), stderr: Vec::new() })
    }

    /// Waits for the pipes and the end; true once the program has ended.
    fn turn(&mut self, ended: &OwnedFd, kick: Option<&Kick>, stdin: &[u8], left: Duration) -> std::io::Result<bool> {
        if self.written >= stdin.len() {
            self.input = None;
        }
        let mut fds = vec![PollFd::new(ended, PollFlags::IN)];
        fds.extend(self.out.as_ref().map(|p| PollFd::new(p, PollFlags::IN)));
        fds.extend(self.err.as_ref().map(|p| PollFd::new(p, PollFlags::IN)));
        fds.extend(self.input.as_ref().map(|p| PollFd::new(p, PollFlags::OUT)));
        fds.extend(kick.map(|kick| PollFd::new(kick, PollFlags::IN)));
        let left = Timespec::try_from(left).map_err(std::io::Error::other)?;
        match poll(&mut fds, Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let over = !fds[0].revents().is_empty();
        if let Some(input) = &mut self.input {
            match input.write(&stdin[self.written..]) {
                Ok(n) => self.written += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock || e.kind() == ErrorKind::Interrupted => {}
                // It does not want (more of) its input.
                Err(_) => self.written = stdin.len(),
            }
        }
        self.drain()?;
        Ok(over)
    }

    /// Reads what is there.
    fn drain(&mut self) -> std::io::Result<()> {
        if read_into(&mut self.out, &mut self.stdout)? {
            self.out = None;
        }
        if read_into(&mut self.err, &mut self.stderr)? {
            self.err = None;
        }
        Ok(())
    }
}

/// Reads what is there, at most 64 pieces so that a program that never stops writing does not hide the deadline.
/// True at the end of the file.
fn read_into<R: Read>(pipe: &mut Option<R>, kept: &mut Vec<u8>) -> std::io::Result<bool> {
    let Some(pipe) = pipe else { return Ok(false) };
    let mut piece = [0; 8192];
    for _ in 0..64 {
        match pipe.read(&mut piece) {
            Ok(0) => return Ok(true),
            Ok(n) => kept.extend_from_slice(&piece[..n.min(OUTPUT - kept.len())]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(e) => return Err(e),
        }
    }
    Ok(false)
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
        // What had to be cut off goes on with nothing else.
        c.deadline.check(lua)?;
        match ran {
            Ok(ran) => {
                let answer = lua.create_table()?;
                answer.raw_set("status", ran.status.code())?;
                answer.raw_set("signal", ran.status.signal())?;
                answer.raw_set("stdout", lua.create_string(ran.stdout)?)?;
                answer.raw_set("stderr", lua.create_string(ran.stderr)?)?;
                Ok(MultiValue::from_iter([Value::Table(answer)]))
            }
            Err(why) => Ok(MultiValue::from_iter([Value::Nil, Value::String(lua.create_string(why)?)])),
        }
    })
}
