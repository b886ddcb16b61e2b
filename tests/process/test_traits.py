"""What a script can see of its interpreter is the same under plain Python and in a fork. One test for each trait."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import pytest_asyncio

from tests.process.conftest import IMPORT_SECONDS, Outcome, run
from tlaunch.launcher.control.spawn import Zygote
from tlaunch.launcher.process.messages import Work

# Expressions that mean the same in both. The script has imported torch, as the zygote has.
TRAITS = {
    "main is in sys.modules": "sys.modules['__main__'].__dict__ is globals()",
    "main names": "sorted(name for name in globals() if name.startswith('__'))",
    "main file": "__file__",
    "main name": "(__name__, __package__, __doc__, __cached__, __annotations__)",
    "main spec": "__spec__",
    "main loader": "(type(__loader__).__name__, __loader__.name, __loader__.path)",
    "main builtins": "__builtins__ is builtins",
    "builtins": "sorted(dir(builtins))",
    "code file": "sys._getframe().f_back.f_code.co_filename",
    "argv": "sys.argv",
    "orig_argv": "sys.orig_argv[1:]",
    "path": "sys.path",
    "flags": "sys.flags",
    "executable": "(sys.executable, sys.prefix, sys.base_prefix, sys.exec_prefix)",
    "X options": "(sys._xoptions, sys.warnoptions, sys.dont_write_bytecode, sys.pycache_prefix)",
    "working directory": "os.getcwd()",
    # Torch's compiler sets one variable when it is imported, and again when it is missing.
    "environment": "{k: v for k, v in os.environ.items() if k != 'TORCHINDUCTOR_CACHE_DIR'}",
    "environment of C": "{name: libc.getenv(name.encode()) for name in [*TASK_ENV, 'NOT_THERE']}",
    "environment of children": "[v for v in output('env', '-0').split(b'\\0') if b'INDUCTOR' not in v]",
    "user and group": "(os.getuid(), os.geteuid(), os.getgid(), os.getegid(), os.getgroups())",
    "session leader": "(os.getsid(0) == os.getpid(), os.getpgrp() == os.getpid())",
    "umask": "umask()",
    "resource limits": "{n: resource.getrlimit(getattr(resource, n)) for n in dir(resource) if 'RLIMIT_' in n}",
    "priority": "(os.nice(0), os.sched_getscheduler(0), sorted(os.sched_getaffinity(0)))",
    "out-of-memory score": "pathlib.Path('/proc/self/oom_score_adj').read_text()",
    "process name": "pathlib.Path('/proc/self/comm').read_text()",
    "command line": "pathlib.Path('/proc/self/cmdline').read_text().replace(chr(0), ' ').strip()",
    "open descriptors": "sorted(int(fd) for fd in os.listdir('/proc/self/fd') if int(fd) < 64)",
    "children's descriptors": "subprocess.run(['ls', '/proc/self/fd'], close_fds=False, stdout=-1).stdout.split()",
    "inheritable": "[os.get_inheritable(fd) for fd in (0, 1, 2)]",
    "stdin": "(os.readlink('/proc/self/fd/0'), stream(sys.stdin), sys.stdin.read())",
    "stdout": "stream(sys.stdout)",
    "stderr": "stream(sys.stderr)",
    "original streams": "(sys.stdin is sys.__stdin__, sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__)",
    "position in stdout": "(sys.stdout.seekable(), sys.stdout.tell(), sys.stdout.buffer.tell())",
    "locale": "(locale.setlocale(locale.LC_ALL), locale.getpreferredencoding(), sys.getfilesystemencoding())",
    "signal handlers": "[repr(signal.getsignal(n)).partition(' at ')[0] for n in range(1, signal.NSIG)]",
    "signals in the kernel": "[line for line in open('/proc/self/status') if line.startswith('Sig')][1:]",
    "wakeup descriptor": "signal.set_wakeup_fd(-1)",
    "timers": "(signal.getitimer(signal.ITIMER_REAL), signal.alarm(0))",
    "threads": "([t.name for t in threading.enumerate()], threading.active_count())",
    "main thread": "threading.main_thread().ident == threading.get_ident() == threading.current_thread().ident",
    "native id": "threading.main_thread().native_id == threading.get_native_id() == os.getpid()",
    "threads in the kernel": "len(os.listdir('/proc/self/task'))",
    "hooks": "(sys.excepthook is sys.__excepthook__, sys.unraisablehook is sys.__unraisablehook__, sys.displayhook)",
    "thread hook": "threading.excepthook is threading.__excepthook__",
    "trace and profile": "(sys.gettrace(), sys.getprofile(), sys.get_coroutine_origin_tracking_depth())",
    "interpreter settings": "(sys.getrecursionlimit(), sys.getswitchinterval(), sys.int_info, sys.getdlopenflags())",
    "collector": "(gc.isenabled(), gc.get_threshold(), gc.get_debug(), gc.callbacks)",
    "faulthandler": "faulthandler.is_enabled()",
    "tracemalloc": "tracemalloc.is_tracing()",
    "root logger": "(logging.root.handlers, logging.root.level, logging.root.manager.disable)",
    "warnings filters": "sorted(map(str, warnings.filters))",
    "socket timeout": "socket.getdefaulttimeout()",
    "parent process of multiprocessing": "multiprocessing.parent_process()",
    "multiprocessing": "(multiprocessing.current_process().name, multiprocessing.active_children())",
    "start method": "(multiprocessing.get_start_method(allow_none=True), torch.multiprocessing.get_sharing_strategy())",
    "path of multiprocessing's children": "multiprocessing.spawn.get_preparation_data('x').keys()",
    "directory of multiprocessing": "multiprocessing.process.ORIGINAL_DIR",
    "processor time starts at nought": "time.process_time() < 60 and time.thread_time() < 60",
    "no module of ours": "[name for name in sys.modules if name.partition('.')[0] == 'tlaunch']",
    "torch threads": "(torch.get_num_threads(), torch.get_num_interop_threads())",
    "torch defaults": "(torch.get_default_dtype(), torch.is_grad_enabled(), torch.initial_seed() > 0)",
    "torch devices": "(torch.cuda.is_initialized(), torch.cuda._is_in_bad_fork(), torch.get_default_device())",
    "torch groups": "torch.distributed.is_initialized()",
    "modules can be imported": "__import__('neighbour').VALUE",
}  # fmt: skip

SCRIPT = """
    import builtins, ctypes, faulthandler, gc, json, locale, logging, multiprocessing, multiprocessing.spawn, os
    import pathlib, resource, signal, socket, subprocess, sys, threading, time, tracemalloc, warnings
    import torch, torch._dynamo, torch.distributed.elastic.events, torch.distributed.elastic.multiprocessing.errors

    TASK_ENV = [name for name in os.environ if name != "TORCHINDUCTOR_CACHE_DIR"]
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_char_p

    def output(*command):
        return subprocess.run(command, stdout=-1).stdout

    def umask():
        os.umask(mask := os.umask(0))
        return mask

    def stream(s):
        return (s.name, s.mode, s.encoding, s.errors, s.newlines, s.line_buffering, s.write_through, s.isatty(),
                s.fileno(), type(s.buffer).__name__, s.buffer.raw.name, s.buffer.raw.mode, s.buffer.raw.closefd)

    def show(expression):
        try:
            return repr(eval(expression))
        except Exception as error:
            return repr(error)

    print(json.dumps({name: show(expression) for name, expression in TRAITS.items()}))
"""


@pytest.fixture(scope="module")
def seen() -> dict[str, dict[str, str]]:
    """What the script saw under plain Python and in a fork; filled by the first test."""
    return {}


@pytest_asyncio.fixture
async def both(
    seen: dict[str, dict[str, str]],
    zygote: Zygote,
    tmp_path: Path,
    work: Callable[..., Work],
    plain: Callable[[Work], Outcome],
) -> dict[str, dict[str, str]]:
    if not seen:
        (tmp_path / "neighbour.py").write_text("VALUE = 42")
        task = work(
            f"TRAITS = {TRAITS}\n" + textwrap.dedent(SCRIPT), argv=("--flag", "", "ä b"), env={"MÄRCHEN": "ü\udcff"}
        )
        process = await zygote.standby(timeout=IMPORT_SECONDS)
        outcomes = {"plain": plain(task), "forked": await run(process, task)}
        assert process.note is None
        for how, outcome in outcomes.items():
            assert outcome.code == 0, outcome.stderr
            seen[how] = json.loads(outcome.stdout)
    return seen


@pytest.mark.parametrize("trait", TRAITS)
def test_trait(trait: str, both: dict[str, dict[str, str]]) -> None:
    assert both["forked"][trait] == both["plain"][trait]
