//! What an agent offers to choose in a session (a mode, a model, options of its own), and what is chosen.
//!
//! Owns how a pick is matched with the offers, in which order picks are fulfilled, and which modes are known to ask
//! nobody. It must not know how an agent is told.

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize};

/// Chooses the mode, whatever the agent calls it.
pub const MODE: &str = "mode";
/// Chooses the model.
pub const MODEL: &str = "model";

/// What is picked: one of the offered values, or a switch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Pick {
    /// On or off.
    Switch(bool),
    /// A value by the agent's own id or name.
    Value(String),
}

impl<'de> Deserialize<'de> for Pick {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl Visitor<'_> for Read {
            type Value = Pick;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a text, or true or false")
            }

            fn visit_bool<E>(self, on: bool) -> Result<Pick, E> {
                Ok(Pick::Switch(on))
            }

            fn visit_str<E>(self, value: &str) -> Result<Pick, E> {
                Ok(Pick::Value(value.to_owned()))
            }
        }
        deserializer.deserialize_any(Read)
    }
}

impl std::fmt::Display for Pick {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Switch(on) => write!(f, "{on}"),
            Self::Value(value) => f.write_str(value),
        }
    }
}

/// One value that can be chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// The agent's id.
    pub id: String,
    /// For people.
    pub name: String,
}

/// A choice of one of several values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// What is chosen now.
    pub current: String,
    /// What there is.
    pub offers: Vec<Offer>,
}

/// What kind of a setting it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingKind {
    /// One of several values.
    Select(Choice),
    /// On or off.
    Switch(bool),
}

/// An option of the agent's session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The agent's id.
    pub id: String,
    /// For people.
    pub name: String,
    /// What it is about: `mode`, `model`, or another word.
    pub category: Option<String>,
    /// Its values.
    pub kind: SettingKind,
}

/// All that an agent offers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offers {
    /// The agent's own name for itself.
    pub agent: String,
    /// Its modes.
    pub modes: Option<Choice>,
    /// Its models.
    pub models: Option<Choice>,
    /// Its options. Where one of them is the mode or the model, it is used before the two above.
    pub settings: Vec<Setting>,
}

/// How a pick is fulfilled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// This mode, by its id.
    Mode(String),
    /// This model, by its id.
    Model(String),
    /// This option gets this value.
    Setting(String, Pick),
}

impl Choice {
    /// The id of the offer that is meant: by its id, else by its name.
    fn find(&self, pick: &str) -> Option<String> {
        let named = |o: &&Offer| o.name.eq_ignore_ascii_case(pick);
        let found = self.offers.iter().find(|o| o.id == pick).or_else(|| self.offers.iter().find(named));
        found.map(|o| o.id.clone())
    }

    fn list(&self) -> String {
        let all: Vec<&str> = self.offers.iter().map(|o| o.id.as_str()).collect();
        if all.is_empty() { "none".to_owned() } else { all.join(", ") }
    }
}

impl Setting {
    fn resolve(&self, pick: &Pick) -> Result<Change, String> {
        let value = match (&self.kind, pick) {
            (SettingKind::Switch(_), Pick::Switch(on)) => Pick::Switch(*on),
            (SettingKind::Switch(_), Pick::Value(word)) => match word.as_str() {
                "true" | "on" => Pick::Switch(true),
                "false" | "off" => Pick::Switch(false),
                _ => return Err(format!("{} is true or false, not {word:?}", self.id)),
            },
            (SettingKind::Select(choice), pick) => match choice.find(&pick.to_string()) {
                Some(id) => Pick::Value(id),
                None => return Err(format!("there is no {} {:?}, only: {}", self.id, pick.to_string(), choice.list())),
            },
        };
        Ok(Change::Setting(self.id.clone(), value))
    }
}

impl Offers {
    /// The option with this id; of the mode and the model also the one that is about it.
    fn setting(&self, id: &str) -> Option<&Setting> {
        let about = |s: &&Setting| matches!(id, MODE | MODEL) && s.category.as_deref() == Some(id);
        self.settings.iter().find(|s| s.id == id).or_else(|| self.settings.iter().find(about))
    }

    /// How a pick is fulfilled. `id`: [`MODE`], [`MODEL`], or an option's.
    ///
    /// # Errors
    /// The agent does not offer that: says what it does.
    pub fn resolve(&self, id: &str, pick: &Pick) -> Result<Change, String> {
        if let Some(setting) = self.setting(id) {
            return setting.resolve(pick);
        }
        let named = |choice: &Option<Choice>, made: fn(String) -> Change| {
            let choice = choice.clone().unwrap_or_default();
            let known = || format!("there is no {id} {:?}, only: {}", pick.to_string(), choice.list());
            choice.find(&pick.to_string()).map(made).ok_or_else(known)
        };
        match id {
            MODE => named(&self.modes, Change::Mode),
            MODEL => named(&self.models, Change::Model),
            _ => {
                let all: Vec<&str> = self.settings.iter().map(|s| s.id.as_str()).collect();
                let all = if all.is_empty() { "none".to_owned() } else { all.join(", ") };
                Err(format!("there is no option {id:?}, only: {all}"))
            }
        }
    }

    /// Whether that is so already.
    #[must_use]
    pub fn has(&self, change: &Change) -> bool {
        let current = |choice: &Option<Choice>, id: &str| choice.as_ref().is_some_and(|c| c.current == *id);
        match change {
            Change::Mode(id) => current(&self.modes, id),
            Change::Model(id) => current(&self.models, id),
            Change::Setting(id, pick) => self.settings.iter().any(|s| s.id == *id && s.kind.is(pick)),
        }
    }

    /// The agent has made a change.
    pub fn note(&mut self, change: &Change) {
        match change {
            Change::Mode(id) => self.note_mode(id),
            Change::Model(id) => {
                if let Some(models) = self.models.as_mut() {
                    models.current.clone_from(id);
                }
            }
            Change::Setting(id, pick) => {
                if let Some(setting) = self.settings.iter_mut().find(|s| s.id == *id) {
                    setting.kind.set(pick);
                }
            }
        }
    }

    /// The agent is in this mode now.
    pub fn note_mode(&mut self, id: &str) {
        id.clone_into(&mut self.modes.get_or_insert_default().current);
    }

    /// Whether nothing is known of what there is to choose.
    #[must_use]
    pub fn are_unknown(&self) -> bool {
        self.modes.is_none() && self.models.is_none() && self.settings.is_empty()
    }

    /// Its mode, if that is known.
    #[must_use]
    pub fn mode(&self) -> Option<&str> {
        match self.setting(MODE) {
            Some(Setting { kind: SettingKind::Select(choice), .. }) => Some(&choice.current),
            _ => self.modes.as_ref().map(|modes| modes.current.as_str()),
        }
    }

    /// Why the agent asks nobody before it acts, if that is known: its mode, or an option.
    #[must_use]
    pub fn asks_nobody(&self) -> Option<String> {
        let agent = self.agent.to_ascii_lowercase();
        let silent = |mode: &&str| SILENT.iter().any(|(of, word)| agent.contains(of) && plain(mode) == *word);
        if let Some(mode) = self.mode().filter(silent) {
            return Some(format!("mode {mode:?}"));
        }
        let on = |s: &&Setting| {
            SILENT_SWITCHES.contains(&s.id.as_str()) && (s.kind.is(&Pick::Switch(true)) || s.kind.is(&on_by_word()))
        };
        self.settings.iter().find(on).map(|s| format!("option {:?}", s.id))
    }
}

impl SettingKind {
    fn is(&self, pick: &Pick) -> bool {
        match (self, pick) {
            (Self::Switch(on), Pick::Switch(pick)) => on == pick,
            (Self::Select(choice), Pick::Value(id)) => choice.current == *id,
            _ => false,
        }
    }

    fn set(&mut self, pick: &Pick) {
        match (self, pick) {
            (Self::Switch(on), Pick::Switch(pick)) => *on = *pick,
            (Self::Select(choice), Pick::Value(id)) => choice.current.clone_from(id),
            _ => {}
        }
    }
}

/// A switch of an agent whose protocol has none.
fn on_by_word() -> Pick {
    Pick::Value("on".to_owned())
}

/// A mode's id in small letters, without what joins its words. Some agents write their ids as addresses: the last part
/// counts.
fn plain(mode: &str) -> String {
    let last = mode.rsplit(['#', '/']).next().unwrap_or(mode);
    last.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// Modes that are known to ask nobody: what the agent's own name has in it, and the mode. Seen with real agents; what the
/// same word means differs from one to the other.
const SILENT: [(&str, &str); 12] = [
    ("", "bypasspermissions"),
    ("", "dontask"),
    ("", "yolo"),
    ("", "fullaccess"),
    ("", "agentfullaccess"),
    ("", "autoapprove"),
    ("", "autopilot"),
    ("codex", "agent"),
    ("qwen", "auto"),
    ("vibe", "acceptedits"),
    ("agentao", "workspacewrite"),
    ("openhands", "alwaysapprove"),
];
/// Options that make an agent ask nobody when they are on.
const SILENT_SWITCHES: [&str; 2] = ["auto_approve", "allow_all"];

/// The picks in the order in which they are to be fulfilled: the model first, because options may be its own, and the
/// mode last, because that is what must hold at the end. A later pick replaces an earlier one of the same id.
#[must_use]
pub fn in_order(picks: &[(String, Pick)]) -> Vec<(&str, &Pick)> {
    let mut kept: Vec<(&str, &Pick)> = Vec::new();
    for (id, pick) in picks {
        kept.retain(|(before, _)| before != id);
        kept.push((id, pick));
    }
    kept.sort_by_key(|(id, _)| match *id {
        MODEL => 0,
        MODE => 2,
        _ => 1,
    });
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(current: &str, ids: &[&str]) -> Choice {
        let offer = |id: &&str| Offer { id: (*id).to_owned(), name: format!("The {id}") };
        Choice { current: current.to_owned(), offers: ids.iter().map(offer).collect() }
    }

    fn setting(id: &str, category: Option<&str>, kind: SettingKind) -> Setting {
        Setting { id: id.to_owned(), name: id.to_owned(), category: category.map(str::to_owned), kind }
    }

    fn value(value: &str) -> Pick {
        Pick::Value(value.to_owned())
    }

    #[test]
    fn a_pick_is_matched_by_id_or_name() {
        let offers = Offers {
            modes: Some(choice("auto", &["ask", "auto"])),
            models: Some(choice("big", &["big", "small"])),
            settings: vec![
                setting("effort", None, SettingKind::Select(choice("low", &["low", "high"]))),
                setting("fast", None, SettingKind::Switch(false)),
            ],
            ..Offers::default()
        };
        let set = |id: &str, pick| Ok(Change::Setting(id.to_owned(), pick));
        for (id, pick, want) in [
            (MODE, value("ask"), Ok(Change::Mode("ask".into()))),
            (MODE, value("the ASK"), Ok(Change::Mode("ask".into()))),
            (MODE, value("yolo"), Err("there is no mode \"yolo\", only: ask, auto")),
            (MODE, Pick::Switch(true), Err("there is no mode \"true\", only: ask, auto")),
            (MODEL, value("small"), Ok(Change::Model("small".into()))),
            ("effort", value("high"), set("effort", value("high"))),
            ("effort", value("huge"), Err("there is no effort \"huge\", only: low, high")),
            ("fast", Pick::Switch(true), set("fast", Pick::Switch(true))),
            ("fast", value("on"), set("fast", Pick::Switch(true))),
            ("fast", value("quite"), Err("fast is true or false, not \"quite\"")),
            ("colour", value("red"), Err("there is no option \"colour\", only: effort, fast")),
        ] {
            assert_eq!(offers.resolve(id, &pick), want.map_err(str::to_owned), "{id} {pick}");
        }
        let none = Offers::default();
        assert_eq!(none.resolve(MODE, &value("a")), Err("there is no mode \"a\", only: none".to_owned()));
        assert_eq!(none.resolve("x", &value("a")), Err("there is no option \"x\", only: none".to_owned()));
    }

    #[test]
    fn an_option_about_the_mode_comes_before_the_modes() {
        let mut offers = Offers {
            modes: Some(choice("auto", &["ask", "auto"])),
            settings: vec![setting("permissions", Some("mode"), SettingKind::Select(choice("auto", &["ask", "auto"])))],
            ..Offers::default()
        };
        let change = offers.resolve(MODE, &value("ask")).unwrap_or(Change::Mode(String::new()));
        assert_eq!(change, Change::Setting("permissions".into(), value("ask")));
        assert!(!offers.has(&change));
        offers.note(&change);
        assert!(offers.has(&change));
        assert_eq!(offers.mode(), Some("ask"));
        offers.settings.clear();
        assert_eq!(offers.mode(), Some("auto"));
        offers.note_mode("plan");
        assert!(offers.has(&Change::Mode("plan".into())) && !offers.has(&Change::Model("plan".into())));
    }

    #[test]
    fn the_model_comes_first_and_the_mode_last() {
        let pick = |id: &str, text: &str| (id.to_owned(), value(text));
        let all = [pick("mode", "a"), pick("effort", "b"), pick("model", "c"), pick("mode", "d")];
        let order: Vec<(&str, String)> = in_order(&all).into_iter().map(|(id, w)| (id, w.to_string())).collect();
        assert_eq!(order, [("model", "c".to_owned()), ("effort", "b".to_owned()), ("mode", "d".to_owned())]);
    }

    #[test]
    fn which_modes_ask_nobody() {
        for (agent, mode, silent) in [
            ("anything", "bypassPermissions", true),
            ("claude", "default", false),
            ("qwen-code", "auto", true),
            ("codex-acp", "auto", false),
            ("codex-acp", "full-access", true),
            ("codex-acp", "agent", true),
            ("copilot", "https://agentclientprotocol.com/protocol/session-modes#agent", false),
            ("copilot", "https://agentclientprotocol.com/protocol/session-modes#autopilot", true),
            ("mistral-vibe", "accept_edits", true),
        ] {
            let offers = Offers { agent: agent.into(), modes: Some(choice(mode, &[])), ..Offers::default() };
            assert_eq!(offers.asks_nobody().is_some(), silent, "{agent} {mode}");
        }
        let mut offers =
            Offers { settings: vec![setting("auto_approve", None, SettingKind::Switch(true))], ..Offers::default() };
        assert_eq!(offers.asks_nobody().as_deref(), Some("option \"auto_approve\""));
        offers.note(&Change::Setting("auto_approve".into(), Pick::Switch(false)));
        assert_eq!(offers.asks_nobody(), None);
    }
}
