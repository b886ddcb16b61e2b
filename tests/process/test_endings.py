"""A script's end is the same under plain Python and in a fork: finalizers, exit handlers, threads, last flushes."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

import pytest

from tests.process.conftest import Outcome, comparable, run
from tlaunch.launcher.control.spawn import Process
from tlaunch.launcher.process.messages import Work

# Objects that tell when they go.
LOUD = """
import atexit, gc, os, sys, threading, time, weakref
PREFIX = 'gone:'
class Loud:
    def __init__(self, name):
        self.name = name
    def __del__(self):
        print(PREFIX, self.name, os.path.basename('/a/b'), sys.is_finalizing())
"""

OBJECTS = {
    "in the module": "a = Loud('a'); b = Loud('b'); _c = Loud('_c'); print('last line')",
    "in containers": "a = [Loud('list')]; b = {1: Loud('dict')}; c = (Loud('tuple'),)",
    "in a cycle": "a = Loud('a'); b = Loud('b'); a.other, b.other = b, a",
    "in a cycle that nothing holds": "a = Loud('a'); a.me = a; del a",
    "in a closure": """
        def outer(x):
            return lambda: x
        a = outer(Loud('x'))
    """,
    "in a default": "def f(x=Loud('x')): ...",
    "in a function's attribute": "def f(): ...\nf.x = Loud('x')",
    "in a class": "class C: x = Loud('class')",
    "in a frame that exits": "def f():\n    x = Loud('x')\n    sys.exit(3)\nf()",
    "in a frame that fails": "def f():\n    x = Loud('x')\n    1 / 0\nf()",
    "in a frame that is interrupted": "def f():\n    x = Loud('x')\n    raise KeyboardInterrupt\nf()",
    "in an exception": "sys.exit(Loud('code'))",
    "in a module of its own": """
        import types
        module = sys.modules['made'] = types.ModuleType('made')
        module.x = Loud('x')
    """,
    "in a module that holds main": """
        import types
        module = sys.modules['made'] = types.ModuleType('made')
        module.main = sys.modules['__main__']
        x = Loud('x')
    """,
    "in sys": "sys.x = Loud('sys')",
    "in an exit handler": "atexit.register(lambda x: print('handler', x.name), Loud('x'))",
    "in a thread's local data": "data = threading.local(); data.x = Loud('x')",
    "in a suspended generator": """
        def generator():
            try:
                yield Loud('yielded')
            finally:
                print('finally')
        g = generator()
        x = next(g)
    """,
    "with the collector off": "gc.disable(); a = Loud('a'); a.me = a",
    "with the collector's callbacks gone": "a = Loud('a'); atexit.register(gc.callbacks.clear)",
    "with everything frozen": "a = Loud('a'); a.me = a; gc.freeze()",
    # Plain Python does not get to these once torch is there.
    "that a cache of the library holds": """
        import torch, typing
        def f(x: typing.Optional[Loud]): ...
        a = Loud('a')
    """,
    "that fail": """
        class Failing:
            def __del__(self):
                1 / 0
        a = Failing()
    """,
    "that fail, with a hook": """
        sys.unraisablehook = lambda args: print('hook', args.exc_value, args.err_msg)
        class Failing:
            def __del__(self):
                1 / 0
        a = Failing()
    """,
    "that import": """
        class Importing:
            def __del__(self):
                import colorsys
        a = Importing()
    """,
    "that exit": """
        class Exiting:
            def __del__(self):
                sys.exit(3)
        a = Exiting()
    """,
    "that print much": "Loud.__del__ = lambda self: print('x' * 100_000); a = Loud('a')",
    "that write to stderr": "Loud.__del__ = lambda self: sys.stderr.write('half a line'); a = Loud('a')",
    "that log": """
        import logging
        logging.basicConfig(stream=sys.stdout)
        Loud.__del__ = lambda self: logging.warning('gone')
        a = Loud('a')
    """,
    "finalized": "a = Loud('a'); weakref.finalize(a, print, 'finalized')",
    "finalized without atexit": "a = Loud('a'); weakref.finalize(a, print, 'finalized').atexit = False",
    "finalized in order": "a, b = Loud('a'), Loud('b'); weakref.finalize(a, print, 1); weakref.finalize(b, print, 2)",
    "weakly referenced": "a = Loud('a'); r = weakref.ref(a, lambda _: print('callback'))",
    "with an exit handler that makes more": "atexit.register(lambda: globals().update(late=Loud('late')))",
    "with a thread that makes more": """
        def late():
            threading.main_thread().join()
            globals().update(late=Loud('late'))
            atexit.register(print, 'registered by a thread')
        threading.Thread(target=late).start()
    """,
    "with a thread that runs on": """
        def spin():
            while True:
                pass
        threading.Thread(target=spin, daemon=True).start()
        a = Loud('a')
    """,
    "with a thread that holds some": """
        def wait(x):
            try:
                ready.set()
                time.sleep(600)
            finally:
                print('never')
        ready = threading.Event()
        threading.Thread(target=wait, args=(Loud('held'),), daemon=True).start()
        ready.wait()
        a = Loud('a')
    """,
}

FILES = {
    "text": "f = os.fdopen(os.dup(1), 'w'); f.write('text'); print('first')",
    "bytes": "f = os.fdopen(os.dup(1), 'wb'); f.write(b'bytes')",
    "in a cycle": "class C: ...\nc = C(); c.c = c; c.f = os.fdopen(os.dup(1), 'w'); c.f.write('text')",
    "of a function": "def f(file=os.fdopen(os.dup(1), 'w')): ...\nf.__defaults__[0].write('text')",
    "after an exception": "f = os.fdopen(os.dup(1), 'w'); f.write('text'); 1 / 0",
    "full": "f = open('/dev/full', 'w'); f.write('text')",
    "of C": """
        import ctypes
        libc = ctypes.CDLL(None)
        libc.puts(b'by C, buffered')
        print('by Python')
    """,
    "temporary": """
        import tempfile
        read, write = os.pipe()
        if pid := os.fork():  # looks at what the child leaves
            os.waitpid(pid, 0)
            names = os.read(read, 1000).decode().split()
            print(len(names), [os.path.exists(name) for name in names])
        else:
            folder, file = tempfile.TemporaryDirectory(), tempfile.NamedTemporaryFile()
            open(folder.name + '/file', 'w').close()
            os.write(write, f'{folder.name} {file.name}'.encode())
    """,
    "of a log": """
        import logging, logging.handlers
        target = logging.StreamHandler(os.fdopen(os.dup(1), 'w'))
        logging.root.addHandler(logging.handlers.MemoryHandler(100, target=target))
        logging.warning('kept until the end')
        atexit.register(logging.warning, 'in an exit handler')
    """,
}

STREAMS = {
    "stdout is full": "fill(1); print('x')",
    "stdout is full, and an exit code": "fill(1); print('x'); sys.exit(3)",
    "stdout is full, and an exception": "fill(1); print('x'); 1 / 0",
    "stdout is full, and an interrupt": "fill(1); print('x'); raise KeyboardInterrupt",
    "stdout is full, and nothing to write": "fill(1)",
    "stdout is full at the very end": """
        class Late:
            def __del__(self):
                print('x')
        late = Late(); fill(1)
    """,
    "stderr is full": "fill(2); sys.stderr.write('half a line')",
    "stderr is full, and an exception": "fill(2); 1 / 0",
    "stdout's descriptor is closed": "print('x'); os.close(1)",
    "stderr's descriptor is closed": "sys.stderr.write('x'); os.close(2)",
    "stdout is a broken pipe": """
        read, write = os.pipe()
        os.dup2(write, 1)
        os.close(read)
        print('x')
    """,
    "stdout is closed": "print('x'); sys.stdout.close()",
    "both are closed": "sys.stdout.close(); sys.stderr.close()",
    "stdout is None": "print('x'); sys.stdout = None",
    "stdout is missing": "print('x'); del sys.stdout",
    "stdout is replaced": "sys.stdout = os.fdopen(os.dup(1), 'w'); print('mine'); print('theirs', file=sys.__stdout__)",
    "stdout is replaced by text in memory": "import io; sys.stdout = io.StringIO(); print('lost')",
    "stdout is no file": """
        class Stream:
            def write(self, text):
                sys.__stdout__.write(text.upper())
        sys.stdout = Stream()
        print('x')
    """,
    "stdout fails to flush": """
        class Stream:
            def flush(self):
                raise ValueError('no flush')
        sys.stdout = Stream()
    """,
    "stdout exits at its flush": """
        class Stream:
            def flush(self):
                sys.exit(4)
        sys.stdout = Stream()
    """,
}

HANDLERS = {
    "in order": "[atexit.register(print, i) for i in range(3)]; print('last line')",
    "registered by handlers": "atexit.register(lambda: atexit.register(print, 'in')); atexit.register(print, 'out')",
    "that fail": "atexit.register(print, 'goes on'); atexit.register(lambda: 1 / 0); atexit.register(print, 'begins')",
    "that exit": "atexit.register(print, 'goes on'); atexit.register(sys.exit, 5)",
    "that exit after an exit": "atexit.register(sys.exit, 5); sys.exit(3)",
    "that are interrupted": "import signal; atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))",
    "that are terminated": "import signal; atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))",
    "that end the process": "atexit.register(os._exit, 7)",
    "that see the globals": "x = 3; atexit.register(lambda: print(x, __name__, sys.argv[1:], 'os' in sys.modules))",
    "that import": "def f():\n    import colorsys\n    print(colorsys.__name__)\natexit.register(f)",
    "that are unregistered": "atexit.register(print, 'never'); atexit.unregister(print)",
    "that are run before the end": "atexit.register(print, 'x'); atexit._run_exitfuncs(); print('y'); sys.exit(3)",
    "that see the collector": "atexit.register(lambda: print(gc.isenabled(), gc.callbacks, gc.get_threshold()))",
    "that raise their own kind": """
        def fail():
            raise KeyboardInterrupt('in a handler')
        atexit.register(fail)
    """,
}

CODES = {
    "largest": "sys.exit(2**63 - 1)",
    "too large": "sys.exit(2**63)",
    "smallest": "sys.exit(-2**63)",
    "too small": "sys.exit(-2**63 - 1)",
    "beyond an int": "sys.exit(2**32 + 3)",
    "a float": "sys.exit(1.5)",
    "a tuple": "sys.exit((1, 2))",
    "several": "raise SystemExit(1, 2)",
    "a kind of int": "class Code(int): ...\nsys.exit(Code(4))",
    "a kind of exit": "class Exit(SystemExit): code = 6\nraise Exit",
    "changed": "error = SystemExit(3); error.code = 8; raise error",
    "a kind of interrupt": "class Interrupt(KeyboardInterrupt): ...\nraise Interrupt('x')",
    "interrupts in a group": "raise BaseExceptionGroup('two', [KeyboardInterrupt(), ValueError()])",
    "an interrupt while SIGINT is ignored": """
        import signal
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt
    """,
    "an interrupt that a hook exits by": "sys.excepthook = lambda *_: sys.exit(6); raise KeyboardInterrupt",
    "a hook that exits with a message": "sys.excepthook = lambda *_: sys.exit('message'); 1 / 0",
}

CHILDREN = {
    "that return": "pid = os.fork(); print('child' if not pid else ('parent', os.waitpid(pid, 0)[1]))",
    "that exit": """
        pid = os.fork()
        atexit.register(print, 'handler of', 'parent' if pid else 'child')
        sys.exit(os.waitpid(pid, 0)[1] >> 8 if pid else 5)
    """,
    "that fail": """
        pid = os.fork()
        if not pid:
            1 / 0
        print(os.waitpid(pid, 0)[1])
    """,
    "that are interrupted": """
        pid = os.fork()
        if not pid:
            raise KeyboardInterrupt
        print(os.waitpid(pid, 0)[1])
    """,
    "forked in an exit handler": """
        @atexit.register
        def handler():
            pid = os.fork()
            print('child' if not pid else ('parent', os.waitpid(pid, 0)[1]))
    """,
    "of multiprocessing": """
        import multiprocessing
        def child():
            atexit.register(print, 'exit handler of a child', flush=True)
            print('child', flush=True)
        if __name__ == '__main__':
            print('not joined', flush=True)
            multiprocessing.Process(target=child).start()
    """,
    "of multiprocessing that are daemons": """
        import multiprocessing
        if __name__ == '__main__':
            process = multiprocessing.Process(target=time.sleep, args=(600,), daemon=True)
            process.start()
            print('not joined')
    """,
    "of executors": """
        import concurrent.futures
        if __name__ == '__main__':
            print('not shut down')
            pool = concurrent.futures.ProcessPoolExecutor(1)
            pool.submit(abs, -3).add_done_callback(lambda future: print(future.result()))
    """,
}

THREADS = {
    "that are interrupted while they are joined": """
        import signal
        def interrupt():
            threading.main_thread().join()
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)
        threading.Thread(target=interrupt).start()
        atexit.register(print, 'handler')
    """,
    "of a timer": "threading.Timer(0.1, print, ['timer']).start()",
    "that fail late": "threading.Thread(target=lambda: (threading.main_thread().join(), 1 / 0), name='late').start()",
    "that use an executor late": """
        import concurrent.futures
        pool = concurrent.futures.ThreadPoolExecutor()
        def late():
            time.sleep(0.1)
            pool.submit(print, 'late')
        pool.submit(late)
    """,
    "of an event loop": """
        import asyncio
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        print(asyncio.run_coroutine_threadsafe(asyncio.sleep(0, 'done'), loop).result())
    """,
}

FILL = """
import os, sys
def fill(fd):
    os.dup2(os.open('/dev/full', os.O_WRONLY), fd)
"""

GROUPS = {
    "objects": (LOUD, OBJECTS), "files": (LOUD, FILES), "streams": (FILL, STREAMS), "handlers": (LOUD, HANDLERS),
    "codes": (LOUD, CODES), "children": (LOUD, CHILDREN), "threads": (LOUD, THREADS),
}  # fmt: skip
SCRIPTS = {f"{group} {name}": (head, body) for group, (head, bodies) in GROUPS.items() for name, body in bodies.items()}


@pytest.mark.parametrize("name", SCRIPTS)
async def test_script(name: str, standby: Process, work: Callable[..., Work], plain: Callable[[Work], Outcome]) -> None:
    head, body = SCRIPTS[name]
    task = work(head + textwrap.dedent(body))
    forked = await run(standby, task)
    assert standby.note is None
    assert comparable(forked) == comparable(plain(task))
