"""Talks to the control socket that the first argument names, with the QMP library of the qemu project."""

import asyncio
import sys

from qemu.qmp import ExecuteError, QMPClient
from qemu.qmp.legacy import QEMUMonitorProtocol


async def converse(path):
    client = QMPClient("first")
    await client.connect(path)
    status = await client.execute("query-status")
    assert status["running"] and status["status"] == "running", status
    names = {command["name"] for command in await client.execute("query-commands")}
    assert {"query-block", "query-pci", "human-monitor-command"} <= names, names
    for name in sorted(name for name in names if name.startswith("query-")):
        await client.execute(name)

    with client.listener(("STOP", "RESUME", "RESET")) as events:
        for command, event in (("stop", "STOP"), ("cont", "RESUME"), ("system_reset", "RESET")):
            assert await client.execute(command) == {}
            heard = await asyncio.wait_for(events.get(), 20)
            assert heard["event"] == event and heard["timestamp"]["seconds"] > 0, heard

    for command, arguments, kind in (
        ("query-sttaus", {}, "CommandNotFound"),
        ("stop", {"now": True}, "GenericError"),
        ("set_link", {"name": "none", "up": True}, "DeviceNotFound"),
    ):
        try:
            await client.execute(command, arguments)
        except ExecuteError as error:
            assert error.error_class == kind, (command, error.error_class)
        else:
            raise AssertionError(f"{command} was not refused")
    text = await client.execute("human-monitor-command", {"command-line": "info status"})
    assert text == "VM status: running\r\n", text

    # Two clients at once, and many questions of one at once.
    second = QMPClient("second")
    await second.connect(path)
    answers = await asyncio.gather(*(client.execute("query-name") for _ in range(100)), second.execute("query-name"))
    assert answers == [{"name": "web"}] * 101, answers
    await second.disconnect()
    await client.disconnect()


def converse_as_old_scripts_do(path):
    monitor = QEMUMonitorProtocol(path)
    monitor.settimeout(20)
    monitor.connect()
    assert monitor.cmd("query-status")["running"]
    assert monitor.cmd_raw("query-name")["return"] == {"name": "web"}
    assert monitor.cmd("system_powerdown") == {}
    event = monitor.pull_event(wait=20.0)
    assert event["event"] == "POWERDOWN", event
    monitor.close()


asyncio.run(converse(sys.argv[1]))
converse_as_old_scripts_do(sys.argv[1])
print("all is well")
