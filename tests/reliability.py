"""The tables of docs/reliability.md, from what campaigns of tests counted (docs/reliability/<campaign>.json).

    PYTHONPATH=. python tests/reliability.py

rewrites the tables, as `pytest --record` does; the prose of the page is edited by hand.
"""

import json
import subprocess
from datetime import date
from pathlib import Path

from attune.report.tables import escape, markdown_table
from attune.runtime.io import between_marks, write_json, write_text
from attune.runtime.machine import machine

CODE = ("attune", "stages", "tests", "conf")
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs/reliability"
PAGE = ROOT / "docs/reliability.md"
SECTIONS = ("kill", "checkpoints", "resources", "inputs", "load", "security", "determinism")


def keep(name, command, rows):
    """Write a campaign's counts with commit, date and machine, then the page; keep other rows of the same commit."""
    record = {"command": command, "commit": commit(), "date": date.today().isoformat(), "machine": machine()}
    before = results().get(name, {"rows": []})
    same = all(before.get(key) == record[key] for key in ("command", "commit"))
    new = {row["what"] for row in rows}
    kept = [row for row in before["rows"] if same and row["what"] not in new]
    write_json(RESULTS / f"{name}.json", {**record, "rows": [*kept, *rows]})
    write_text(PAGE, page(PAGE.read_text(encoding="utf-8"), results()))


def commit():
    """The commit of HEAD, marked if code or tests have uncommitted changes."""
    output = [
        subprocess.run(["git", *command], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
        for command in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--", *CODE])
    ]
    return output[0] + (" with changes" if output[1] else "")


def results():
    """All campaigns, by file name without suffix."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}


def page(text, found):
    """`text` with the table of each section replaced; `ValueError` if a mark or a section is missing."""
    if unknown := found.keys() - set(SECTIONS):
        raise ValueError(f"{', '.join(sorted(unknown))} has no section in {PAGE.name}: SECTIONS names them")
    for name in SECTIONS:
        begin, end = f"<!-- {name}: written by pytest --record -->\n", f"<!-- end of {name} -->\n"
        text = between_marks(text, begin, end, block(found.get(name)), PAGE)
    return text


def block(record):
    """A campaign's table, and a line with command, date, commit and machine."""
    if record is None:
        return "Not counted yet.\n"
    rows = record["rows"]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    body = [[escape(str(row["what"])), *(shown(row.get(key)) for key in columns if key != "what")] for row in rows]
    table = markdown_table([["what", *(escape(key) for key in columns if key != "what")], *body])
    on = record.get("machine", {})
    ground = [f"`{record['command']}`", record.get("date"), record.get("commit"), on.get("processor")]
    ground += [f"{on['cores']} cores", f"Python {on['python']}", f"torch {on['torch']}"] if on else []
    return f"{table}\n\n" + "; ".join(filter(None, ground)) + ".\n"


def shown(value):
    """A number with thousands separators, a text escaped, None as a dash."""
    return "\u2013" if value is None else f"{value:,}" if isinstance(value, (int, float)) else escape(str(value))


if __name__ == "__main__":
    write_text(PAGE, page(PAGE.read_text(encoding="utf-8"), results()))
