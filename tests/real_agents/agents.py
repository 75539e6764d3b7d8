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
        # It decodes percent signs in its working directory's path, and then finds no such directory: its session/new
        # succeeds and each prompt fails with "OpenCode service failure". So {key}, which has them, cannot be in the path.
        "cwd": "work/{hash}",
    }


AGENTS = {"hermes": hermes, "opencode": opencode}
