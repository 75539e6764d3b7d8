//! One operation for the writer: a named transaction, which can be run again, and its caller.

use crossbeam_channel::Sender;

use super::tx::Tx;
use super::{Error, closed};

/// One operation for the writer.
pub(super) enum Job {
    /// A named transaction.
    Work(Box<dyn Work>),
    /// Checkpoint, close, answer, end.
    Close(Sender<Result<(), Error>>),
}

impl Job {
    pub(super) fn work<T, R, D>(name: &'static str, run: R, done: D) -> Self
    where
        T: Send + 'static,
        R: FnMut(&mut Tx<'_>) -> Result<T, Error> + Send + 'static,
        D: FnOnce(Result<T, Error>) + Send + 'static,
    {
        Self::Work(Box::new(Named { name, run, value: None, done: Some(done) }))
    }

    /// Answers the caller: it was not done.
    pub(super) fn refuse(self, error: &Error) {
        match self {
            Self::Work(mut work) => work.done(Err(error.clone())),
            Self::Close(answer) => {
                let _ = answer.send(Err(error.clone()));
            }
        }
    }
}

/// A transaction that can be run again, and its caller.
pub(super) trait Work: Send {
    fn name(&self) -> &'static str;
    fn run(&mut self, tx: &mut Tx<'_>) -> Result<(), Error>;
    fn done(&mut self, outcome: Result<(), Error>);
}

struct Named<T, R, D> {
    name: &'static str,
    run: R,
    value: Option<T>,
    done: Option<D>,
}

impl<T, R, D> Work for Named<T, R, D>
where
    T: Send,
    R: FnMut(&mut Tx<'_>) -> Result<T, Error> + Send,
    D: FnOnce(Result<T, Error>) + Send,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn run(&mut self, tx: &mut Tx<'_>) -> Result<(), Error> {
        self.value = None;
        self.value = Some((self.run)(tx)?);
        Ok(())
    }

    fn done(&mut self, outcome: Result<(), Error>) {
        let Some(done) = self.done.take() else { return };
        match (outcome, self.value.take()) {
            (Ok(()), Some(value)) => done(Ok(value)),
            (Ok(()), None) => done(Err(closed())),
            (Err(e), _) => done(Err(e)),
        }
    }
}
