"""The real agents: how each is run, and pointed at the fake model."""

import json
import os


def hermes(cache, home, port):
    """hermes-agent: asks before it runs what looks dangerous, such as `rm -rf`."""
    config = {
        "model": {"provider": "custom", "default": "fake-1", "base_url": f"http://127.0.0.1:{port}/v1", "api_key": "x"},
        "approvals": {"mode": "manual"},
    }
    os.makedirs(f"{home}/.hermes")
    with open(f"{home}/.hermes/config.yaml", "w", encoding="utf-8") as file:
        json.dump(config, file)  # JSON is YAML
    bin_dir = f"{cache}/hermes/bin"
    return {
        "command": [f"{bin_dir}/hermes-acp"],
        "env": {"HERMES_HOME": f"{home}/.hermes", "PATH": f"{bin_dir}:/usr/local/bin:/usr/bin:/bin"},
        "memory": [f"{home}/.hermes/state.db", f"{home}/.hermes/sessions"],
    }


def opencode(cache, home, port):
    """opencode: told to ask before any shell command."""
    options = {"baseURL": f"http://127.0.0.1:{port}/v1", "apiKey": "x"}
    limits = {"name": "Fake", "tool_call": True, "limit": {"context": 200000, "output": 8000}}
    provider = {"npm": "@ai-sdk/openai-compatible", "name": "Fake", "options": options, "models": {"fake-1": limits}}
    config = {
        "model": "fake/fake-1",
        "small_model": "fake/fake-1",
        "autoupdate": False,
        "share": "disabled",
        "permission": {"bash": "ask"},
        "provider": {"fake": provider},
    }
    os.makedirs(home)
    with open(f"{home}/opencode.json", "w", encoding="utf-8") as file:
        json.dump(config, file)
    return {
        "command": [f"{cache}/opencode/bin/opencode", "acp"],
        "env": {
            "OPENCODE_CONFIG": f"{home}/opencode.json",
            "OPENCODE_DISABLE_AUTOUPDATE": "1",
            "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
            "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
            "OPENCODE_DISABLE_MODELS_FETCH": "1",
            # It looks for a plugin's types at each start; here it finds nothing, at once.
            "npm_config_registry": f"http://127.0.0.1:{port}/",
            "PATH": "/usr/local/bin:/usr/bin:/bin",
        },
        "memory": [f"{home}/.local/share/opencode"],
    }


def codex_acp(cache, home, port):
    """codex-acp of zed-industries: the model asks for leave, because the command needs more than codex' sandbox gives."""
    config = f"""\
model = "fake-1"
model_provider = "fake"
approval_policy = "on-request"
check_for_update_on_startup = false

[model_providers.fake]
name = "Fake"
base_url = "http://127.0.0.1:{port}/v1"
wire_api = "responses"
requires_openai_auth = false

[analytics]
enabled = false
"""
    os.makedirs(f"{home}/.codex")
    with open(f"{home}/.codex/config.toml", "w", encoding="utf-8") as file:
        file.write(config)
    return {
        "command": [f"{cache}/codex-acp/bin/codex-acp"],
        "env": {"CODEX_HOME": f"{home}/.codex", "PATH": "/usr/local/bin:/usr/bin:/bin"},
        "memory": [f"{home}/.codex/sessions"],
    }


def copilot(cache, home, port):
    """GitHub's copilot, offline, with a model of our own; it asks before any shell command."""
    os.makedirs(home)
    return {
        "command": [f"{cache}/copilot/bin/copilot", "--acp"],
        "env": {
            "COPILOT_PROVIDER_BASE_URL": f"http://127.0.0.1:{port}/v1",
            "COPILOT_PROVIDER_TYPE": "openai",
            "COPILOT_PROVIDER_API_KEY": "x",
            "COPILOT_MODEL": "fake-1",
            "COPILOT_OFFLINE": "true",
            "PATH": "/usr/local/bin:/usr/bin:/bin",
        },
        "memory": [f"{home}/.copilot/session-state"],
    }


AGENTS = {"hermes": hermes, "opencode": opencode, "codex-acp": codex_acp, "copilot": copilot}
