//! What a client reads: a turn that it follows, and events as they come.

use crossbeam_channel::{Receiver, RecvTimeoutError};
use ostler::client::{Client, ClientError, SseEvent};
use serde_json::Value;
use ureq::http::Method;

use super::PATIENCE;

/// A turn as a client that follows it sees it.
#[derive(Debug)]
pub struct Turn {
    pub accepted: Value,
    pub events: Vec<SseEvent>,
}

impl Turn {
    pub fn read(events: impl Iterator<Item = Result<SseEvent, ClientError>>) -> Self {
        let mut events: Vec<SseEvent> = events.map(|e| e.unwrap()).collect();
        assert_eq!(events[0].event, "accepted");
        Self { accepted: events.remove(0).data, events }
    }

    pub fn id(&self) -> &str {
        self.accepted["turn_id"].as_str().unwrap()
    }

    pub fn session(&self) -> &str {
        self.accepted["session_id"].as_str().unwrap()
    }

    /// The pieces of the answer, joined.
    pub fn text(&self) -> String {
        self.of("text").map(|e| e.text("text")).collect()
    }

    pub fn of(&self, kind: &str) -> impl Iterator<Item = &SseEvent> {
        self.events.iter().filter(move |e| e.event == kind)
    }

    /// `completed`, or whatever it was; the stream must have ended with it.
    #[track_caller]
    pub fn outcome(&self) -> &str {
        let last = self.events.last().unwrap();
        assert_eq!(last.event, "turn_end", "{self:?}");
        last.text("outcome")
    }

    /// The code of a failed turn's error.
    pub fn error(&self) -> &Value {
        &self.events.last().unwrap().data["error"]
    }
}

/// Events as they come, read by a thread, each waited for with a deadline.
pub struct Events {
    events: Receiver<Result<SseEvent, ClientError>>,
    pub seen: Vec<SseEvent>,
}

impl Events {
    pub fn open(client: &Client, path: &str, last_event_id: Option<u64>) -> Self {
        let stream = client.stream(path, Method::GET, None, last_event_id).unwrap();
        let (send, events) = crossbeam_channel::unbounded();
        std::thread::spawn(move || stream.take_while(|e| send.send(e.clone()).is_ok()).for_each(drop));
        Self { events, seen: Vec::new() }
    }

    /// The next event; `None` when the stream has ended.
    pub fn next(&mut self) -> Option<SseEvent> {
        match self.events.recv_timeout(PATIENCE) {
            Ok(Ok(event)) => {
                self.seen.push(event.clone());
                Some(event)
            }
            Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("no event comes; seen: {}", self.told()),
        }
    }

    /// The next of a kind; what comes before it is kept in `seen`.
    #[track_caller]
    pub fn until(&mut self, kind: &str) -> SseEvent {
        self.until_where(kind, |e| e.event == kind)
    }

    /// The end of a turn: its outcome, and all of its data.
    #[track_caller]
    pub fn end_of(&mut self, turn: &Value) -> (String, Value) {
        let id = turn["turn_id"].as_str().unwrap();
        if let Some(end) = self.seen.iter().find(|e| e.event == "turn_end" && e.text("turn_id") == id) {
            return (end.text("outcome").to_owned(), end.data.clone());
        }
        let end = self.until_where(id, |e| e.event == "turn_end" && e.text("turn_id") == id);
        (end.text("outcome").to_owned(), end.data)
    }

    #[track_caller]
    pub fn until_where(&mut self, what: &str, meant: impl Fn(&SseEvent) -> bool) -> SseEvent {
        loop {
            match self.next() {
                Some(event) if meant(&event) => return event,
                Some(_) => {}
                None => panic!("the stream ended without {what}; seen: {}", self.told()),
            }
        }
    }

    /// Everything until the stream ends.
    pub fn rest(mut self) -> Vec<SseEvent> {
        while self.next().is_some() {}
        self.seen
    }

    /// What was seen, a line each.
    pub fn told(&self) -> String {
        self.seen.iter().map(|e| format!("\n{} {:?} {}", e.event, e.id, e.data)).collect()
    }

    pub fn kinds(&self) -> Vec<&str> {
        self.seen.iter().map(|e| e.event.as_str()).collect()
    }
}
