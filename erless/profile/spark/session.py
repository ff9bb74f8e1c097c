"""A Spark session: started here, or joined; refused at once where it cannot work."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from erless.errors import MissingPackageError, SparkError, first_line

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["SparkOptions", "spark_errors", "spark_session"]

MAJOR = 4  # of Spark: 3 has other Arrow functions, and no Python above 3.11
CONNECT_S = 5.0
CONNECT = "sc://"
PORTS = {"spark": 7077, "sc": 15002}  # where the URL names none
LOCAL = {  # a session of this machine's own: nobody else reaches it
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.ui.enabled": "false",
    "spark.driver.memory": "2g",
    # Half of what a start takes is the optimizing compiler's, which pays off in minutes.
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    "spark.shuffle.compress": "false",  # it goes to this machine's own page cache
    # The JVM hands on a few large rows: code and plans made for them cost more than they save.
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.sql.shuffle.partitions": "8",
}
EVERYWHERE = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "4",  # windows of up to 12 MB each
}


@dataclass(frozen=True)
class SparkOptions:
    """Which Spark, and how.

    master: as `spark-submit --master` takes it, or a Spark Connect URL (sc://host:port); empty:
    what spark-submit says. conf: properties above all others.
    """

    master: str = ""
    conf: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def spark_session(options: SparkOptions) -> Iterator[SparkSession]:
    """A session while the block runs; what Spark refuses inside it becomes a SparkError.

    Raises:
        MissingPackageError: pyspark is not installed.
        SparkError: no Java, no master, another major version, or a job that failed.
    """
    try:
        import pyspark
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise MissingPackageError(
            "pyspark is not installed: pip install 'erless[spark]'"
        ) from error
    if int(pyspark.__version__.split(".")[0]) != MAJOR:
        raise SparkError(f"pyspark here is {pyspark.__version__}: it must be of version {MAJOR}")
    _check_reachable(options.master)
    settings = {
        **(LOCAL if options.master.startswith("local") else {}),
        **EVERYWHERE,
        **options.conf,
    }
    builder = SparkSession.builder.appName("erless profile")
    with spark_errors():
        if options.master.startswith(CONNECT):
            builder = builder.remote(options.master)
        else:
            _check_java()
            os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
            if options.master:
                builder = builder.master(options.master)
        for key, value in settings.items():
            builder = builder.config(key, value)
        joined = SparkSession.getActiveSession() is not None  # whose it is, stops it
        spark = builder.getOrCreate()
        try:
            if int(spark.version.split(".")[0]) != MAJOR:
                raise SparkError(
                    f"the cluster runs Spark {spark.version}, pyspark here is "
                    f"{pyspark.__version__}: both must be of version {MAJOR}"
                )
            yield spark
        finally:
            if not joined:
                with suppress(Exception):  # it is gone already
                    spark.stop()


@contextmanager
def spark_errors() -> Iterator[None]:
    """Translate what pyspark and its gateway to the JVM raise.

    Raises:
        SparkError: with Spark's own first line.
    """
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    try:
        yield
    except (PySparkException, Py4JError, ConnectionError) as error:
        cause = getattr(error, "java_exception", None)
        said = str(cause.getMessage()) if cause is not None else str(error)
        raise SparkError(f"Spark gave up: {first_line(Exception(said.strip()))[:400]}") from error


def _check_java() -> None:
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin") if home else shutil.which("java")
    if java is None:
        where = f"at JAVA_HOME={home}" if home else "on the PATH"
        raise SparkError(f"no Java {where}: Spark {MAJOR} needs Java 17 or newer")


def _check_reachable(master: str) -> None:
    """A master that is not there would be asked for a minute."""
    for address in master.removeprefix("spark://").split(",") if "://" in master else []:
        parts = urlsplit(address if "://" in address else f"spark://{address}")
        if parts.scheme not in PORTS:
            return
        try:
            host, port = (
                parts.hostname or "",
                parts.port or (15002 if parts.scheme == "sc" else 7077),
            )
            socket.create_connection((host, port), CONNECT_S).close()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            raise SparkError(f"no Spark answers at {master}: {reason}") from error
