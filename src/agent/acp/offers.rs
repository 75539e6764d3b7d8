//! What the agent offers to choose: read of its answers and updates, and chosen by requests.
//!
//! Owns the shapes in which agents write that, bounded; [`crate::model::offers`] matches picks with them.

use std::time::Instant;

use super::client::{CallError, Client};
use super::session::explain;
use super::wire::{shorten, v1};
use crate::agent::json::Raw;
use crate::agent::{Failure, Host};
use crate::config::Consent;
use crate::model::offers::{Choice, Offer, Offers, Pick, Setting, SettingKind, in_order};

/// The most values of a choice, and the most options.
const MANY: usize = 500;
/// The longest id or name, in bytes.
const NAME: usize = 1024;

/// What is picked of each session of an agent.
#[derive(Clone, Debug, Default)]
pub struct Picks {
    /// By what is chosen; a later one replaces an earlier one.
    pub all: Vec<(String, Pick)>,
    /// What a mode that asks nobody meets.
    pub consent: Option<Consent>,
}

fn text(field: Raw<'_>) -> Option<String> {
    field.string().filter(|text| !text.is_empty() && text.len() <= NAME)
}

/// A value with its name, under the names that an agent has for both.
fn offer(value: Raw<'_>, id: &str) -> Option<Offer> {
    let [id, name] = value.fields([id, "name"]);
    let id = text(id)?;
    Some(Offer { name: text(name).unwrap_or_else(|| id.clone()), id })
}

fn choice(current: Raw<'_>, offers: Raw<'_>, id: &str) -> Option<Choice> {
    let offers = offers.items(MANY).into_iter().filter_map(|value| offer(value, id)).collect();
    Some(Choice { current: text(current)?, offers })
}

fn setting(option: Raw<'_>) -> Option<Setting> {
    let [id, name, category, kind, current, options] =
        option.fields(["id", "name", "category", "type", "currentValue", "options"]);
    let id = text(id)?;
    let kind = match kind.string().as_deref() {
        Some("boolean") => SettingKind::Switch(current.is_true()),
        Some("select") => {
            // The values may be in groups.
            let groups = options.items(MANY);
            let values = groups.iter().flat_map(|value| match value.get("options") {
                inner if inner.is_array() => inner.items(MANY),
                _ => vec![*value],
            });
            let offers = values.take(MANY).filter_map(|value| offer(value, "value")).collect();
            SettingKind::Select(Choice { current: text(current)?, offers })
        }
        _ => return None,
    };
    Some(Setting { name: text(name).unwrap_or_else(|| id.clone()), id, category: text(category), kind })
}

/// Takes in what an answer says of modes, models and options: to a new, loaded or resumed session, or to a changed
/// option.
pub fn take_in(offers: &mut Offers, answer: Raw<'_>) {
    let [modes, models, options] = answer.fields(["modes", "models", "configOptions"]);
    if modes.is_object() {
        let [current, all] = modes.fields(["currentModeId", "availableModes"]);
        offers.modes = choice(current, all, "id");
    }
    if models.is_object() {
        let [current, all] = models.fields(["currentModelId", "availableModels"]);
        offers.models = choice(current, all, "modelId");
    }
    if options.is_array() {
        offers.settings = options.items(MANY).into_iter().filter_map(setting).collect();
    }
}

/// Takes in an update about the mode or the options. `false`: it is about something else.
pub fn update(offers: &mut Offers, update: Raw<'_>) -> bool {
    let [kind, mode] = update.fields(["sessionUpdate", "currentModeId"]);
    match kind.string().as_deref() {
        Some("current_mode_update") => {
            if let Some(mode) = text(mode) {
                offers.note_mode(&mode);
            }
        }
        Some("config_option_update") => take_in(offers, update),
        _ => return false,
    }
    true
}

/// Fulfils the picks in a session that was opened.
///
/// # Errors
/// `agent_option`: the agent does not offer what is picked, or refuses it, or asks nobody where it must. It died or did
/// not answer in time.
pub fn fulfil(
    client: &mut Client,
    host: &mut dyn Host,
    (session, offers): (&str, &mut Offers),
    picks: &Picks,
    until: Instant,
) -> Result<(), Failure> {
    for (id, pick) in in_order(&picks.all) {
        let change = offers.resolve(id, pick).map_err(|why| Failure::new("agent_option", why))?;
        if offers.has(&change) {
            continue;
        }
        let (method, params) = v1::change(session, &change);
        let answer = client.call(host, (method, &params), until, &mut |method, params| {
            if method == v1::UPDATE {
                update(offers, params.get("update"));
            }
        });
        match answer {
            Ok(result) => {
                offers.note(&change);
                take_in(offers, Raw::of(&result));
            }
            Err(CallError::Refused(e)) => {
                return Err(Failure::new("agent_option", format!("it refuses {id} {:?}: {e}", pick.to_string())));
            }
            Err(e) => return Err(explain(client, host, method, e)),
        }
    }
    strictly(offers, picks)
}

/// The requests that fulfil the picks in a session that was opened within a turn, and what the agent does not offer.
pub fn requests(session: &str, offers: &mut Offers, picks: &Picks) -> (Vec<v1::Call>, Vec<String>) {
    let (mut calls, mut missing) = (Vec::new(), Vec::new());
    for (id, pick) in in_order(&picks.all) {
        match offers.resolve(id, pick) {
            Ok(change) if offers.has(&change) => {}
            Ok(change) => {
                calls.push(v1::change(session, &change));
                offers.note(&change);
            }
            Err(why) => missing.push(why),
        }
    }
    (calls, missing)
}

/// Refuses an agent that asks nobody, if that is picked.
///
/// # Errors
/// `agent_option`: it asks nobody.
pub fn strictly(offers: &Offers, picks: &Picks) -> Result<(), Failure> {
    match offers.asks_nobody().filter(|_| picks.consent == Some(Consent::Strict)) {
        Some(why) => {
            let why = shorten(&why, NAME);
            Err(Failure::new("agent_option", format!("it asks nobody before it acts ({why}), and consent is strict")))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::offers::Change;
    use serde_json::json;

    fn of(answer: &serde_json::Value) -> Offers {
        let mut offers = Offers::default();
        take_in(&mut offers, Raw::of(&answer.to_string()));
        offers
    }

    #[test]
    fn offers_are_read_in_the_shapes_that_agents_write() {
        let offers = of(&json!({
            "modes": { "currentModeId": "auto", "availableModes": [{ "id": "ask", "name": "Ask first" }, { "name": "?" }, 7] },
            "models": { "currentModelId": "m1", "availableModels": [{ "modelId": "m1" }, { "modelId": "m2", "name": "Two" }] },
            "configOptions": [
                { "id": "effort", "name": "Effort", "type": "select", "category": "thought_level", "currentValue": "low",
                  "options": [{ "group": "g", "name": "G", "options": [{ "value": "low", "name": "Low" }] }, { "value": "high" }] },
                { "id": "fast", "type": "boolean", "currentValue": true },
                { "id": "x", "type": "slider", "currentValue": 3 },
            ],
        }));
        let modes = offers.modes.clone().unwrap_or_default();
        assert_eq!(
            (modes.current.as_str(), modes.offers.len(), modes.offers[0].name.as_str()),
            ("auto", 1, "Ask first")
        );
        assert_eq!(offers.models.clone().unwrap_or_default().offers[0].name, "m1");
        let ids: Vec<&str> = offers.settings.iter().map(|s| s.id.as_str()).collect();
        assert_eq!(ids, ["effort", "fast"]);
        assert_eq!(offers.settings[1].kind, SettingKind::Switch(true));
        let high = Change::Setting("effort".into(), Pick::Value("high".into()));
        assert_eq!(offers.resolve("effort", &Pick::Value("high".into())), Ok(high), "in and beside groups");
        assert_eq!(of(&json!({ "modes": [], "models": 1, "configOptions": {} })), Offers::default());
    }

    #[test]
    fn updates_change_what_is_known() {
        let mut offers = of(&json!({ "modes": { "currentModeId": "ask", "availableModes": [{ "id": "ask" }] } }));
        let mut tell = |told: &serde_json::Value| update(&mut offers, Raw::of(&told.to_string()));
        assert!(tell(&json!({ "sessionUpdate": "current_mode_update", "currentModeId": "yolo" })));
        assert!(!tell(&json!({ "sessionUpdate": "agent_message_chunk" })));
        let options = json!([{ "id": "fast", "type": "boolean", "currentValue": false }]);
        assert!(tell(&json!({ "sessionUpdate": "config_option_update", "configOptions": options })));
        assert_eq!((offers.mode(), offers.settings.len()), (Some("yolo"), 1));
        let picks = Picks { all: Vec::new(), consent: Some(Consent::Strict) };
        let refused = strictly(&offers, &picks).map_err(|f| (f.code, f.message));
        let why = "it asks nobody before it acts (mode \"yolo\"), and consent is strict".to_owned();
        assert_eq!(refused, Err(("agent_option", why)));
        assert_eq!(strictly(&offers, &Picks { consent: Some(Consent::Required), ..picks }), Ok(()));
    }

    #[test]
    fn a_list_without_end_is_bounded() {
        let many: Vec<_> = (0..5000).map(|n| json!({ "id": n.to_string() })).collect();
        let offers = of(&json!({ "modes": { "currentModeId": "1", "availableModes": many } }));
        assert_eq!(offers.modes.unwrap_or_default().offers.len(), MANY);
        let long = "x".repeat(NAME + 1);
        let offers = of(
            &json!({ "modes": { "currentModeId": "1", "availableModes": [{ "id": long }, { "id": "a", "name": long }] } }),
        );
        assert_eq!(offers.modes.unwrap_or_default().offers, [Offer { id: "a".into(), name: "a".into() }]);
    }
}
