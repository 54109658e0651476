"""Runs pieces of work on a Spark cluster, one task of the cluster each: what `--engine spark` does.

Spark's part is to hand out the pieces, to watch over the processes that do them, and to hand out anew what a lost
process was doing. The data do not pass through it: each piece reads its files and writes to the database (COPY) itself,
by the same code as without Spark.

Needs PySpark, and is imported when it is asked for (loaders/work/run.py).
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pyspark
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from py4j.protocol import Py4JError, Py4JJavaError
from pyspark import SparkConf, SparkContext, TaskContext
from pyspark.accumulators import AccumulatorParam
from pyspark.errors import PySparkException

from pgearth.loaders.server.connection import dsn
from pgearth.loaders.work.task import SPARK_HINT, Engine, Result, Task, attempt
from pgearth.pyfuncs.errors import BusyError, PgearthError

# A worker of its own for each process, with one core and a gigabyte: as separate as if on machines of their own.
LOCAL_CLUSTER = "local-cluster[{jobs},1,1024]"
# Java does next to nothing here: what takes seconds is to start it. (Spark's own options are added to these.)
JAVA_OPTIONS = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
# What the processes take over of this one's environment: variables of libpq and of ours, and GDAL's settings.
SETTINGS = ("PG", "GDAL_", "CPL_")
# By these the server notices that a session's client is gone, in the middle of a statement too, and frees its locks: of
# a killed process within seconds, of a machine that vanished within a minute.
SESSION_OPTIONS = (
    "-c client_connection_check_interval=2s -c tcp_keepalives_idle=30s -c tcp_keepalives_interval=10s"
    " -c tcp_keepalives_count=3 -c tcp_user_timeout=60s"
)
SECONDS_UNTIL_LOCKS_ARE_FREE = 90
SECONDS_BETWEEN_TRIES = 1.0
SECONDS_BETWEEN_LOOKS = 0.2


class Finished(AccumulatorParam[list[Any]]):
    """Takes results to the driver when their task has ended well: each once, whatever Spark had to run again."""

    def zero(self, value: list[Any]) -> list[Any]:  # noqa: ARG002
        """No results."""
        return []

    def addInPlace(self, value1: list[Any], value2: list[Any]) -> list[Any]:  # noqa: N802
        """Append further results."""
        value1.extend(value2)
        return value1


def run_on_spark(
    work: Callable[[Task], Result], tasks: Sequence[Task], engine: Engine
) -> Iterator[tuple[Task, Result | PgearthError]]:
    """Do `work` for every task on the cluster; yield each task with its result, as they are done.

    As run.run_tasks, but what dies, or fails by anything else than bad input, is run again by Spark, four
    times in all (spark.task.maxFailures) before the run ends. Raises PgearthError if Spark cannot start, or gives up.
    """
    if not tasks:
        return
    context = start(engine)
    # Where the workers of a local cluster leave files of every run.
    leftover = Path(os.environ.get("SPARK_HOME") or Path(pyspark.__file__).parent, "work", context.applicationId)
    try:
        finished: Any = context.accumulator([], Finished())
        # They travel within the function, not in Spark's configuration, which Spark shows and logs: there may be a
        # password in them.
        settings = executor_settings()

        def run(numbered: tuple[int, Task]) -> None:
            number, task = numbered
            os.environ.update(settings)
            # Spark sets this to the number of cores that it gives the process.
            os.environ.setdefault("GDAL_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
            finished.add([(number, attempt_when_free(work, task))])

        pieces = context.parallelize(list(enumerate(tasks)), len(tasks))
        with ThreadPoolExecutor(1) as thread:
            job: Future[None] = thread.submit(pieces.foreach, run)
            try:
                taken = 0
                while not job.done() or taken < len(finished.value):
                    wait([job], SECONDS_BETWEEN_LOOKS)
                    for number, result in finished.value[taken:]:
                        taken += 1
                        yield tasks[number], result
                job.result()
            except Py4JJavaError as error:
                raise PgearthError(
                    f"Spark gave up: {java_message(error)}", "What was done stays. Run this again to go on."
                ) from error
            finally:
                context.cancelAllJobs()
    finally:
        context.stop()
        shutil.rmtree(leftover, ignore_errors=True)


def attempt_when_free(work: Callable[[Task], Result], task: Task) -> Result | PgearthError:
    """`attempt`, on the cluster. A task that is run again waits until the session of the lost process has ended."""
    context = TaskContext.get()
    again = context is not None and context.attemptNumber() > 0
    deadline = time.monotonic() + (SECONDS_UNTIL_LOCKS_ARE_FREE if again else 0)
    while isinstance(result := attempt(work, task), BusyError) and time.monotonic() < deadline:
        time.sleep(SECONDS_BETWEEN_TRIES)
    return result


def start(engine: Engine) -> SparkContext:
    """Connect to the cluster, or start one on this machine. Raises PgearthError if there is no Java, or Spark fails."""
    require_java()
    # The processes run the Python that runs this: every machine of a cluster has it under the same path.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    master = engine.spark_master or LOCAL_CLUSTER.format(jobs=engine.jobs)
    configuration = SparkConf().setAppName("pgearth").setMaster(master).set("spark.ui.showConsoleProgress", "false")
    if master.startswith("local"):
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")  # not to be reached from other machines
        configuration.set("spark.ui.enabled", "false")
        configuration.set("spark.driver.extraJavaOptions", JAVA_OPTIONS)
        configuration.set("spark.executor.extraJavaOptions", JAVA_OPTIONS)
    try:
        context = SparkContext(conf=configuration)
    except (PySparkException, Py4JError) as error:
        message = java_message(error) if isinstance(error, Py4JJavaError) else str(error)
        raise PgearthError(
            f"Spark does not start with the master {master}: {message}", f"See its messages above. {SPARK_HINT}"
        ) from error
    context.setLogLevel("WARN")
    return context


def require_java() -> None:
    """Raise PgearthError unless Java is where Spark looks for it: in JAVA_HOME if that is set, else on the PATH."""
    home = os.environ.get("JAVA_HOME")
    if home and not os.access(Path(home, "bin", "java"), os.X_OK):
        raise PgearthError(
            f"There is no Java in JAVA_HOME: {home}", "Unset JAVA_HOME, or set it to a Java 17's folder."
        )
    if not home and not shutil.which("java"):
        raise PgearthError("The engine spark needs Java, and there is none on the PATH.", SPARK_HINT)


def executor_settings() -> dict[str, str]:
    """Environment of the processes on the cluster: this one's settings, and the database that it uses."""
    inherited = {name: value for name, value in os.environ.items() if name.startswith(SETTINGS)}
    own_options = conninfo_to_dict(dsn()).get("options") or os.environ.get("PGOPTIONS") or ""
    return {**inherited, "PGEARTH_DSN": make_conninfo(dsn(), options=f"{SESSION_OPTIONS} {own_options}".strip())}


def java_message(error: Py4JJavaError) -> str:
    """The message of an error in Spark, without the traces of its own code."""
    return str(error.java_exception.getMessage()).partition("\nDriver stacktrace:")[0].partition("\n\tat ")[0].strip()
