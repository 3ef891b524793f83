import tomllib

import fedshare
import world


def test_the_version_is_said_twice_alike() -> None:
    """Flower reads it from pyproject.toml, and an app's bundle has no package metadata to read it from."""
    assert tomllib.loads((world.ROOT / "pyproject.toml").read_text())["project"]["version"] == fedshare.__version__
