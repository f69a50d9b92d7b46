"""Hosts as a person names them: what could be an option or a shell's word never reaches a command line."""

import os
from pathlib import Path

import pytest

from distgrad.errors import BadArgument, BadEnvironment
from distgrad.launching.hosts import MOST_SLOTS, Host, parse_hosts, reachable_hosts, visible_gpus


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("h1", [Host("h1", 1)]),
        ("h1:2, node-3.cluster_a.example.org:64", [Host("h1", 2), Host("node-3.cluster_a.example.org", 64)]),
        ("10.0.0.1:2,me@h2:3", [Host("10.0.0.1", 2), Host("me@h2", 3)]),
        (f"h:{MOST_SLOTS}", [Host("h", MOST_SLOTS)]),
    ],
)
def test_hosts(text: str, hosts: list[Host]) -> None:
    assert parse_hosts(text) == tuple(hosts)


@pytest.mark.fault(47)
@pytest.mark.parametrize(
    "name",
    [
        "",
        ":2",
        "-oProxyCommand=id",
        "-oProxyCommand=id:2",
        "--",
        "me@-oProxyCommand=id",
        "-me@h1",
        "a@b@c",
        "h1 -x",
        "h1\th2",
        "h1\nh2",
        "h1;id",
        "$(id)",
        "`id`",
        "h1&",
        "h1|h2",
        "h1'",
        'h1"',
        "h1\\",
        "h1/..",
        "*",
        "\x1b[31mh1",
        "h1\x00",
        "h\u0131",
        "\u202eh1",
        "\ud800",
        "h" * 10_000,
        "h:0",
        "h:-1",
        "h:1.5",
        "h:",
        "h:+1",
        "h:1_0",
        "h:\u0661",
        "h:\u00b2",
        f"h:{MOST_SLOTS + 1}",
        "h:" + "9" * 5000,
        "h:1:2",
    ],
)
def test_what_is_no_host_is_named(name: str) -> None:
    for text in (name, f"h0:2,{name}"):
        with pytest.raises(BadArgument, match="is no host") as caught:
            parse_hosts(text)
        said = str(caught.value)
        assert said.isprintable()
        assert len(said) < 300
        assert caught.value.status == 64


@pytest.mark.fault(47)
def test_ssh_takes_a_host_for_no_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {tmp_path}/words\n')
    ssh.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.defpath}", "OMPI_MCA_plm_rsh_agent": " "}
    monkeypatch.setenv("PATH", environment["PATH"])  # where subprocess looks for ssh
    assert reachable_hosts([Host("-oProxyCommand=id", 1)], environment) == (Host("-oProxyCommand=id", 1),)
    assert (tmp_path / "words").read_text().split() == ["-o", "BatchMode=yes", "--", "-oProxyCommand=id", "true"]


def test_a_program_to_reach_hosts_that_is_none() -> None:
    with pytest.raises(BadEnvironment, match=r"OMPI_MCA_plm_rsh_agent='ssh \"\\x1b' is no command line"):
        reachable_hosts([Host("h1", 1)], {"OMPI_MCA_plm_rsh_agent": 'ssh "\x1b'})


@pytest.mark.parametrize("text", ["\x1b[31m", "0,a b", "0;1", "x" * 1000])
def test_gpus_that_are_none(text: str) -> None:
    with pytest.raises(BadEnvironment, match="names the GPU") as caught:
        visible_gpus({"CUDA_VISIBLE_DEVICES": text})
    assert str(caught.value).isprintable()
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "GPU-8932f937-d72c,MIG-GPU-8932/1/0,NoDevFiles,-1,?"}) is not None
