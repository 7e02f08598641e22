# Run by the release's own interpreter: `python -c BOOTSTRAP channel=7,library=4,lifeline=5`. Checks that this
# interpreter can load the worker library, loads it and gives it control. Where anything fails, one packet on the
# channel says why: {"Failed": {"stage": "start", ...}}. Written so that interpreters much too old to serve can
# still parse it and be refused with a sentence rather than with a SyntaxError.
def bootstrap():
    import os
    import sys

    del globals()["bootstrap"]
    fds = dict(part.split("=") for part in sys.argv[1].split(","))
    channel, library, lifeline = (int(fds[name]) for name in ("channel", "library", "lifeline"))

    def refuse(reason, details):
        import json

        # JSON has no lone surrogates, and a packet of the channel is bounded: the last lines say the most.
        reason, details = (text.encode("utf-8", "replace").decode("utf-8")[-5000:] for text in (reason, details))
        packet = json.dumps({"Failed": {"stage": "start", "reason": reason, "details": details}})
        os.write(channel, packet.encode("utf-8"))
        os._exit(1)

    def refused_because():
        needed = "the release needs CPython 3.9 or later in its usual build with the GIL"
        implementation = getattr(getattr(sys, "implementation", None), "name", "cpython")
        if implementation != "cpython":
            return "%s is %s; %s" % (sys.executable, implementation, needed)
        if sys.version_info < (3, 9):
            return "%s is Python %d.%d; %s" % ((sys.executable,) + tuple(sys.version_info[:2]) + (needed,))
        # The free-threaded build has another ABI, whether its GIL is switched on at the moment or not.
        if "t" in sys.abiflags or not getattr(sys, "_is_gil_enabled", lambda: True)():
            return "%s is a free-threaded build; %s" % (sys.executable, needed)

    reason = refused_because()
    if reason:
        refuse(reason, "")
    try:
        from importlib.machinery import ExtensionFileLoader, ModuleSpec

        for fd in (channel, library, lifeline):
            os.set_inheritable(fd, False)
        # `python -c` puts the working directory first; the library puts the release there by its real name.
        if not getattr(sys.flags, "safe_path", False) and sys.path[:1] == [""]:
            del sys.path[0]
        sys.argv[:] = ["forkmaster"]
        path = "/proc/self/fd/%d" % library
        loader = ExtensionFileLoader("_forkmaster", path)
        spec = ModuleSpec("_forkmaster", loader, origin=path)
        module = loader.create_module(spec)
        loader.exec_module(module)
        module.__spec__ = spec
        sys.modules["_forkmaster"] = module
        # The path means another file in every other process: nobody should try to open or watch it.
        spec.origin = None
        module.__dict__.pop("__file__", None)
    except BaseException as error:
        import traceback

        reason = traceback.format_exception_only(type(error), error)[-1].strip()
        refuse("the worker library cannot be loaded: " + reason, traceback.format_exc())
    module.run(channel, library, lifeline)


bootstrap()
