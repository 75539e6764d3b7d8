//! What can be chosen in a session of the scripted agent: modes, models and options, forgotten with its process; and what
//! a session was set up with.

use serde_json::{Value, json};

/// A session's settings.
#[derive(Clone, Debug)]
pub struct Settings {
    mode: String,
    model: String,
    effort: String,
    fast: bool,
    servers: Vec<String>,
    instructions: String,
}

impl Settings {
    /// Those of a session that is opened so.
    pub fn new(params: &Value) -> Self {
        let servers = params["mcpServers"].as_array().into_iter().flatten();
        Self {
            mode: "auto".into(),
            model: "big".into(),
            effort: "low".into(),
            fast: false,
            servers: servers
                .map(|s| format!("{}:{}", s["name"].as_str().unwrap(), s["type"].as_str().unwrap_or("stdio")))
                .collect(),
            instructions: params["systemPrompt"]["content"][0]["text"].as_str().unwrap_or_default().into(),
        }
    }

    /// What an answer says of them.
    pub fn told(&self, mut answer: Value) -> Value {
        answer["modes"] = json!({ "currentModeId": self.mode, "availableModes": [
            { "id": "auto", "name": "Auto" }, { "id": "ask", "name": "Ask first" }, { "id": "yolo", "name": "YOLO" } ] });
        answer["models"] = json!({ "currentModelId": self.model, "availableModels": [
            { "modelId": "big", "name": "Big" }, { "modelId": "small", "name": "Small" } ] });
        answer["configOptions"] = self.options();
        answer
    }

    fn options(&self) -> Value {
        json!([
            { "id": "effort", "name": "Effort", "type": "select", "currentValue": self.effort,
              "options": [{ "value": "low", "name": "Low" }, { "value": "high", "name": "High" }] },
            { "id": "fast", "name": "Fast", "type": "boolean", "currentValue": self.fast },
        ])
    }

    /// Changes one; `None`: there is no such method.
    pub fn change(&mut self, method: &str, params: &Value) -> Option<Value> {
        match method {
            "session/set_mode" => params["modeId"].as_str().unwrap().clone_into(&mut self.mode),
            "session/set_model" => params["modelId"].as_str().unwrap().clone_into(&mut self.model),
            "session/set_config_option" => {
                match params["configId"].as_str().unwrap() {
                    "fast" => self.fast = params["value"].as_bool().unwrap(),
                    _ => params["value"].as_str().unwrap().clone_into(&mut self.effort),
                }
                return Some(json!({ "configOptions": self.options() }));
            }
            _ => return None,
        }
        Some(json!({}))
    }

    /// All of them, for people.
    pub fn text(&self) -> String {
        let Self { mode, model, effort, fast, servers, instructions } = self;
        format!("{mode} {model} {effort} {fast} [{}] {instructions}", servers.join(" "))
    }

    pub fn set_mode(&mut self, mode: &str) {
        mode.clone_into(&mut self.mode);
    }
}
