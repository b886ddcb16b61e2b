"""What a script prints and how it ends is the same under plain Python and in a fork, down to the traceback."""

from __future__ import annotations

import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.process.conftest import Outcome, comparable, run
from tlaunch.launcher.control.spawn import Process
from tlaunch.launcher.process.messages import Work

SCRIPTS = {
    "returns": "print('done')",
    "sys.exit(3)": "import sys; sys.exit(3)",
    "sys.exit()": "import sys; sys.exit()",
    "sys.exit(True)": "import sys; sys.exit(True)",
    "sys.exit(-1)": "import sys; sys.exit(-1)",
    "sys.exit(256)": "import sys; sys.exit(256)",
    "sys.exit(text)": "import sys; print('out'); sys.exit('töxt')",
    "SystemExit in a thread": "import sys, threading; threading.Thread(target=sys.exit, args=(3,)).start()",
    "SystemExit caught and raised": """
        try:
            1 / 0
        except ZeroDivisionError:
            raise SystemExit(4)
    """,
    "exception": """
        def outer():
            inner()
        def inner():
            raise ValueError('no such value')
        outer()
    """,
    "exception in a lambda of one line": "(lambda: {}['missing'])()",
    "chained exceptions": """
        try:
            1 / 0
        except ZeroDivisionError as error:
            raise RuntimeError('second') from error
    """,
    "exception in context": """
        try:
            {}['key']
        except KeyError:
            1 / 0
    """,
    "exception group": "raise ExceptionGroup('two', [ValueError(1), TypeError(2)])",
    "exception with notes": """
        error = ValueError('noted')
        error.add_note('a note')
        raise error
    """,
    "exception from C": "import json; json.loads('{')",
    "recursion": """
        def f(n):
            return f(n + 1)
        f(0)
    """,
    "exception in a thread": """
        import threading
        thread = threading.Thread(target=lambda: 1 / 0, name='worker')
        thread.start()
        thread.join()
    """,
    "exception in an atexit handler": "import atexit; atexit.register(lambda: 1 / 0)",
    "exception in __del__": """
        class C:
            def __del__(self):
                1 / 0
        C()
    """,
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "KeyboardInterrupt by signal": """
        import atexit, os, signal
        atexit.register(print, 'atexit')
        os.kill(os.getpid(), signal.SIGINT)
    """,
    "KeyboardInterrupt caught": """
        import os, signal
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            print('caught')
    """,
    "GeneratorExit": "raise GeneratorExit('odd')",
    "os._exit": "import os; print('lost'); os._exit(5)",
    "os.abort": "import os; os.abort()",
    "segmentation fault": "import ctypes; ctypes.string_at(0)",
    "SIGKILL": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "SIGTERM": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "SIGTERM handled": """
        import os, signal, sys
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))
        os.kill(os.getpid(), signal.SIGTERM)
    """,
    "broken pipe": """
        import os
        read, write = os.pipe()
        os.close(read)
        os.write(write, b'x')
    """,
    "excepthook": """
        import sys, traceback
        def hook(kind, value, trace):
            print('hook', kind, value, [f.name for f in traceback.extract_tb(trace)], value.__traceback__ is trace)
            print(sys.last_type, sys.last_value, sys.last_traceback is trace)
        sys.excepthook = hook
        1 / 0
    """,
    "excepthook seen at exit": """
        import atexit, sys
        atexit.register(lambda: print(sys.excepthook is sys.__excepthook__))
        1 / 0
    """,
    "excepthook untouched by SystemExit": """
        import atexit, sys
        atexit.register(lambda: print(sys.excepthook is sys.__excepthook__))
        sys.exit(1)
    """,
    "excepthook that exits": """
        import sys
        sys.excepthook = lambda *_: sys.exit(6)
        1 / 0
    """,
    "syntax error": "print('never')\nx = = 1",
    "indentation error": "if True:\nx = 1",
    "unclosed bracket": "x = (1,\n",
    "other encoding": "# -*- coding: utf-8 -*-\nprint(ascii('ä'))",
    "byte order mark": "\ufeffprint('marked')",
    "no newline at the end": "print(1)",
    "empty": "#",
    "future imports are its own": """
        def f(x: int) -> str: ...
        print(f.__annotations__, __annotations__)
        y: int = 3
        print(__annotations__)
    """,
    "atexit in order": """
        import atexit
        atexit.register(print, 'first registered')
        atexit.register(print, 'second registered')
        print('main ends')
    """,
    "atexit after an exception": "import atexit; atexit.register(print, 'atexit'); 1 / 0",
    "threads are joined": """
        import threading, time
        def late():
            time.sleep(0.2)
            print('late')
        threading.Thread(target=late).start()
        print('main ends')
    """,
    "daemon threads are not": """
        import threading, time
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
        print('main ends')
    """,
    "executors are joined": """
        import concurrent.futures, time
        pool = concurrent.futures.ThreadPoolExecutor(2)
        pool.submit(lambda: (time.sleep(0.1), print('pool')))
        print('main ends')
    """,
    "output is buffered and flushed": """
        import os, sys
        print('one')
        sys.stderr.write('half a line')
        print(os.stat(1).st_size, os.stat(2).st_size, file=sys.stderr)
    """,
    "writes to descriptors mix with print": "import os; print('late'); os.write(1, b'raw\\n'); os.write(2, b'raw\\n')",
    "print to a closed stdout": "import sys; sys.stdout.close(); print('x')",
    "warning": "import warnings; warnings.warn('careful'); warnings.warn('deprecated', DeprecationWarning)",
    "logging without set-up": "import logging; logging.warning('warned'); logging.getLogger('a.b').error('error')",
    "pickle of main": """
        import pickle
        class C: pass
        print(pickle.loads(pickle.dumps(C())).__class__ is C, pickle.dumps(C))
    """,
    "source of main": """
        import inspect
        def f(): return 1
        print(inspect.getsource(f), inspect.getfile(f), inspect.getmodule(f).__name__)
    """,
    "import of main": "import __main__; print(__main__.__name__, __main__.__file__)",
    "dataclass and enum of main": """
        import dataclasses, enum
        @dataclasses.dataclass
        class D: x: int = 1
        class E(enum.Enum): A = 1
        print(D(), E.A, D.__module__, D.__qualname__)
    """,
    "asyncio": """
        import asyncio
        async def main():
            process = await asyncio.create_subprocess_exec('echo', 'hello', stdout=-1)
            print(await process.communicate())
        asyncio.run(main())
    """,
    "subprocess": """
        import subprocess, sys
        print(subprocess.run([sys.executable, '-c', 'import sys; print(sys.argv)', 'x'], capture_output=True).stdout)
    """,
    "os.fork": """
        import os
        pid = os.fork()
        if pid == 0:
            print('child')
            raise SystemExit(8)
        print('parent', os.waitpid(pid, 0)[1] >> 8)
    """,
    "run by runpy": """
        import runpy
        if __name__ == '__main__':
            print(sorted(runpy.run_path(__file__, run_name='again')))
    """,
}


@pytest.mark.parametrize("name", SCRIPTS)
async def test_script(name: str, standby: Process, work: Callable[..., Work], plain: Callable[[Work], Outcome]) -> None:
    task = work(textwrap.dedent(SCRIPTS[name]))
    forked = await run(standby, task)
    assert standby.note is None
    assert comparable(forked) == comparable(plain(task))


def package(folder: Path) -> None:
    (folder / "pack" / "inner").mkdir(parents=True)
    (folder / "pack" / "__init__.py").write_text("print('package')")
    (folder / "pack" / "__main__.py").write_text(DESCRIBE)
    (folder / "pack" / "inner" / "__init__.py").touch()
    (folder / "pack" / "inner" / "job.py").write_text(DESCRIBE + "from .. import VALUE")
    (folder / "single.py").write_text(DESCRIBE)
    (folder / "broken.py").write_text("def f():\n    1 / 0\nf()")
    (folder / "folder").mkdir()
    (folder / "folder" / "__main__.py").write_text(DESCRIBE + "import helper; 1 / 0")
    (folder / "folder" / "helper.py").touch()
    (folder / "empty").mkdir()
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "link.py").symlink_to(folder / "single.py")
    with zipfile.ZipFile(folder / "app.zip", "w") as archive:
        archive.writestr("__main__.py", DESCRIBE + "import helper; helper.f()")
        archive.writestr("helper.py", "def f():\n    1 / 0\n")


DESCRIBE = """
import sys
print(__name__, __file__, __package__, __cached__, __spec__, type(__loader__).__name__)
print(sys.argv, sys.path, sys.modules["__main__"].__dict__ is globals())
print(sys.orig_argv[1:])
"""

COMMANDS: dict[str, tuple[bool, tuple[str, ...]]] = {
    "-m module": (True, ("single", "a", "-b")),
    "-m package": (True, ("pack", "a")),
    "-m submodule with a relative import": (True, ("pack.inner.job",)),
    "-m module that fails": (True, ("broken",)),
    "-m missing": (True, ("missing",)),
    "-m missing in a package": (True, ("pack.missing",)),
    "-m package without main": (True, ("pack.inner",)),
    "-m of the standard library": (True, ("json.tool", "--help")),
    "relative path": (False, ("single.py", "a")),
    "relative path with dots": (False, ("./pack/../single.py",)),
    "script in a package": (False, ("pack/inner/job.py",)),
    "link": (False, ("elsewhere/link.py",)),
    "folder": (False, ("folder", "a")),
    "folder without main": (False, ("empty",)),
    "zip file": (False, ("app.zip", "a")),
    "no such script": (False, ("nowhere.py",)),
    "not a script": (False, ("/dev/null",)),
}


@pytest.mark.parametrize("name", COMMANDS)
async def test_command(
    name: str, standby: Process, work: Callable[..., Work], plain: Callable[[Work], Outcome], tmp_path: Path
) -> None:
    package(tmp_path)
    module, argv = COMMANDS[name]
    task = work(argv=argv, module=module)
    forked = await run(standby, task)
    assert standby.note is None
    assert comparable(forked) == comparable(plain(task))
