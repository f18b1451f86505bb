"""The package as its users import it."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import couchjobs
from couchjobs.couch.design import read_design_document
from couchjobs.installation import JOBS_DESIGN


def test_all_when_looked_at_then_each_name_is_there_once_and_says_what_it_is() -> None:
    """Which names there must be is said by the table of the specification."""
    assert len(couchjobs.__all__) == len(set(couchjobs.__all__))
    for name in couchjobs.__all__:
        found = getattr(couchjobs, name)
        assert isinstance(found, str) or found.__doc__, name


def test_package_when_it_speaks_to_couchdb_then_through_couch_alone() -> None:
    """Which requests there are, and what their answers mean, is known in one place."""
    root = Path(couchjobs.__file__).parent
    others = [file for file in root.rglob("*.py") if file.relative_to(root).parts[0] != "couch"]
    assert len(others) > 100
    assert [
        str(file) for file in others if re.search(r"server\.(request|request_bytes|download)\(", file.read_text())
    ] == []


def test_package_when_installed_then_all_of_it_is_there() -> None:
    """An editable install hides a package that nobody named, and a file that is not shipped."""
    root = Path(couchjobs.__file__).parent
    config = configparser.ConfigParser()
    config.read(root.parent / "setup.cfg")
    named = set(config["options"]["packages"].split())
    there = {".".join(file.parent.relative_to(root.parent).parts) for file in root.rglob("__init__.py")}
    assert named == there | {"couchjobs.design_docs"}
    for package, patterns in config["options.package_data"].items():
        folder = root.parent / (package.replace("couchjobs.design_docs", "design_docs").replace(".", "/"))
        assert all([*folder.glob(pattern.strip())] for pattern in patterns.split(",")), package


def test_views_when_shipped_then_read() -> None:
    """One file a view; a first line names the reduce function."""
    for name in JOBS_DESIGN:
        document = read_design_document(name, 1)
        assert document["_id"] == f"_design/{name}"
        assert all(view["map"].startswith("function") for view in document["views"].values())
    assert read_design_document("queue", 1)["views"]["due"]["reduce"] == "_count"
