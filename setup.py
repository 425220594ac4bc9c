"""All is in pyproject.toml but this: configs/ lies beside the package in a checkout, and inside it in a wheel, where
`train --config NAME` finds it."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for path in sorted(Path("configs").rglob("*.yaml")):
                target = Path(self.build_lib, "harmonic_gpt", path)
                self.mkpath(str(target.parent))
                self.copy_file(str(path), str(target))


setup(cmdclass={"build_py": BuildWithConfigs})
