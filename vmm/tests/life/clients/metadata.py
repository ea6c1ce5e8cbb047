"""Asks for a guest's metadata on the serial line that the first argument names, with cloud-init's client of SmartOS."""

import sys

from cloudinit.sources.DataSourceSmartOS import JoyentMetadataLegacySerialClient, JoyentMetadataSerialClient

client = JoyentMetadataSerialClient(device=sys.argv[1], timeout=20)
with client:
    assert client.get("sdc:hostname") == "web1"
    assert client.get_json("sdc:nics") == [{"interface": "net0", "ips": ["10.0.0.5/24"]}]
    assert client.get("user-script") == "#!/bin/sh\n.\n..dots\n  end  \n"
    assert client.get("nothing", default="else") == "else"
    assert client.list() == ["user-script"], client.list()
    # No longer than the terminal's buffer: the guest that passes it on does not wait for room.
    text = "0123456789 abcdef\n" * 100
    assert client.put("note", text) == "OK"
    assert client.get("note") == text
    assert sorted(client.list()) == ["note", "user-script"]
    assert client.delete("note") == "OK"
    assert client.get("note") is None
    assert client.put("sdc:hostname", "other") is None
# It opens the line anew for each question.
assert client.get("sdc:hostname") == "web1"
assert JoyentMetadataLegacySerialClient(device=sys.argv[1], timeout=20).get("sdc:hostname") == "web1"
print("all is well")
