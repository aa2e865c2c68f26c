"""A new model appears while the gateway runs; a broken file changes nothing.

Give the --config and --state-dir that the gateway was started with; the file is put back.
"""

import argparse
import json
import subprocess
import sys
import urllib.request
from pathlib import Path

NEW = '\n[[backends]]\nname = "hot"\nkind = "echo"\nmodels = ["hot-model"]\n'
BROKEN = '\n[[backends]]\nname = "hot"\nkind = "no-such-kind"\n'


def models(url: str) -> list[str]:
    """List the models."""
    with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as reply:
        return [entry["id"] for entry in json.load(reply)["data"]]


def reload(state_dir: str) -> str:
    """Ask for the reload, which answers when every worker has switched, or none."""
    command = [sys.executable, "-m", "tpo_mp", "reload", "--state-dir", state_dir]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return "reloaded" if done.returncode == 0 else f"refused:\n{done.stderr.strip()}"


def main() -> None:
    """Change the file twice and put it back."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--state-dir", required=True)
    options = parser.parse_args()

    original = options.config.read_text()
    print("before:", *models(options.url))
    try:
        for more in (NEW, BROKEN):
            options.config.write_text(original + more)
            print(reload(options.state_dir))
            print("now:", *models(options.url))
    finally:
        options.config.write_text(original)
    print("put back:", reload(options.state_dir), *models(options.url))


if __name__ == "__main__":
    main()
