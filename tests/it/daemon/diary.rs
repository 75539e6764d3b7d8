//! What a session's agents wrote down: what each heard and said, to be compared with what the daemon kept.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;

/// One prompt as its agent had it.
#[derive(Clone, Debug)]
pub struct Told {
    /// The agent's process.
    pub agent: u32,
    /// The request's id; null for a command.
    pub id: Value,
    /// The last block of its text.
    pub prompt: String,
    /// All that was said to it, joined.
    pub said: String,
    /// It was answered, or the command came to its end.
    pub ended: bool,
}

/// A session's diary.
#[derive(Clone, Debug, Default)]
pub struct Diary {
    /// Each agent's process and the process that started it, in order.
    pub agents: Vec<(u32, u32)>,
    /// Each prompt, in order.
    pub told: Vec<Told>,
    /// What was said outside of any turn.
    pub own: Vec<String>,
    /// How many cancels came.
    pub cancels: usize,
    /// The permissions that were asked for, by process and request, with each answer's option (or its outcome).
    pub permissions: BTreeMap<(u32, String), Vec<String>>,
}

impl Diary {
    /// The diary of a session in a directory; an empty one where nothing was written yet.
    pub fn read(path: &PathBuf) -> Self {
        let mut diary = Self::default();
        // The last line may be on its way.
        let text = std::fs::read_to_string(path).unwrap_or_default();
        for line in text.split_inclusive('\n').filter(|l| l.ends_with('\n')) {
            let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
            let number = |name: &str| u32::try_from(line[name].as_u64().unwrap()).unwrap();
            let agent = number("pid");
            if !line["began"].is_null() {
                diary.agents.push((agent, number("shim")));
            }
            match (&line["heard"], &line["said"]) {
                (Value::Null, Value::Null) => {}
                (Value::Null, said) => diary.said(agent, said),
                (heard, _) => diary.heard(agent, heard),
            }
        }
        diary
    }

    /// The newest agent's process, and its parent.
    #[track_caller]
    pub fn newest(&self) -> (u32, u32) {
        *self.agents.last().expect("an agent began")
    }

    /// The texts of its prompts, in order.
    pub fn prompts(&self) -> Vec<&str> {
        self.told.iter().map(|t| t.prompt.as_str()).collect()
    }

    fn heard(&mut self, agent: u32, heard: &Value) {
        let begins = |id: Value, prompt: &Value| {
            let prompt = prompt.as_str().unwrap_or_default().to_owned();
            Told { agent, id, prompt, said: String::new(), ended: false }
        };
        if heard["prompt"].is_string() {
            self.told.push(begins(Value::Null, &heard["prompt"]));
        }
        match heard["method"].as_str() {
            Some("session/prompt") => {
                let blocks = heard["params"]["prompt"].as_array().unwrap();
                self.told.push(begins(heard["id"].clone(), &blocks.last().unwrap()["text"]));
            }
            Some("session/cancel") => self.cancels += 1,
            None if !heard["id"].is_null() => {
                let outcome = &heard["result"]["outcome"];
                let option = outcome["optionId"].as_str().or(outcome["outcome"].as_str()).unwrap_or("error");
                self.permissions.entry((agent, heard["id"].to_string())).or_default().push(option.to_owned());
            }
            _ => {}
        }
    }

    fn said(&mut self, agent: u32, said: &Value) {
        let open = self.told.last_mut().filter(|t| t.agent == agent && !t.ended);
        let update = &said["params"]["update"];
        let piece = match update["sessionUpdate"].as_str() {
            Some("agent_message_chunk") => update["content"]["text"].as_str(),
            Some(_) => None,
            None => said["text"].as_str(),
        };
        if said["method"] == "session/request_permission" {
            self.permissions.entry((agent, said["id"].to_string())).or_default();
        }
        match (open, piece) {
            (Some(told), Some(piece)) => told.said.push_str(piece),
            (None, Some(piece)) => self.own.push(piece.to_owned()),
            (Some(told), None) => {
                let answers = said["method"].is_null() && !told.id.is_null() && said["id"] == told.id;
                told.ended |= answers || said["end"] == true;
            }
            (None, None) => {}
        }
    }
}
