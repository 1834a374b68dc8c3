"""Java programs, as their jars with all that they need, from Maven Central."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from stack.installing import once, run
from stack.place import Place

_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1"
# Old poms name repositories that are long dead, and Maven would wait for each of them.
_SETTINGS = """<settings>
  <mirrors>
    <mirror>
      <id>none-but-central</id>
      <mirrorOf>*,!central</mirrorOf>
      <url>http://0.0.0.0/</url>
      <blocked>true</blocked>
    </mirror>
  </mirrors>
</settings>
"""


@dataclass(frozen=True, slots=True)
class Jar:
    """One jar.

    Args:
        coordinates: `group:artifact:version`.
        alone: Whether what it depends on stays away.
    """

    coordinates: str
    alone: bool = False


async def installed(place: Place, name: str, jars: Sequence[Jar]) -> Path:
    """The folder with the jars and with all that they depend on; for Java, `FOLDER/*`.

    Raises:
        FailedPrecondition: There is no Maven, or it does not find them.
    """
    pom = _pom(jars)

    async def fetch(folder: Path) -> None:
        (folder / "pom.xml").write_text(pom)
        (folder / "settings.xml").write_text(_SETTINGS)
        await run(
            *("mvn", "--batch-mode", "--quiet", "--settings", "settings.xml"),
            f"{_PLUGIN}:copy-dependencies",
            *("-DincludeScope=runtime", "-DoutputDirectory=lib"),
            cwd=folder,
        )

    return await once(place.cache, name, (pom + _SETTINGS).encode(), fetch) / "lib"


def _pom(jars: Sequence[Jar]) -> str:
    return f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>feedmesh</groupId>
  <artifactId>stack</artifactId>
  <version>1</version>
  <dependencies>{"".join(map(_dependency, jars))}
  </dependencies>
</project>
"""


def _dependency(jar: Jar) -> str:
    group, artifact, version = map(escape, jar.coordinates.split(":"))
    everything = "<exclusion><groupId>*</groupId><artifactId>*</artifactId></exclusion>"
    return f"""
    <dependency>
      <groupId>{group}</groupId>
      <artifactId>{artifact}</artifactId>
      <version>{version}</version>
      {f"<exclusions>{everything}</exclusions>" if jar.alone else ""}
    </dependency>"""
