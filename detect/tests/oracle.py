"""Asks Debian's fail2ban what it finds: its own fail2ban-regex, line by line, hosts raw.

usage: oracle.py ROOT-OF-THE-UNPACKED-PACKAGE <jobs >answers

A job is a line of JSON: {"rules": DIR, "filter": NAME, "options": {K: V}, "now": EPOCH, "files": [FILE]}.
An answer is one line: {"found": [[line, host, user, time], ...] for each file} or {"error": TEXT}.
"""
import json
import os
import sys

sys.path.insert(0, os.path.join(sys.argv[1], "usr/lib/python3/dist-packages"))
from fail2ban.client import fail2banregex  # noqa: E402
from fail2ban.server import datedetector  # noqa: E402
from fail2ban.server.filter import FileContainer  # noqa: E402
from fail2ban.server.mytime import MyTime  # noqa: E402


def forget():
    """Forms of dates count their hits for the whole process; each run of the program starts anew."""
    for template, _ in datedetector.DD_patternCache._cache.values():
        if template is not None:
            template.hits = 0


def ask(job):
    MyTime.setTime(job["now"])
    found = []
    for path in job["files"]:
        forget()
        options, _ = fail2banregex.get_opt_parser().parse_args(["-c", job["rules"], "-r", "-o", "row"])
        program = fail2banregex.Fail2banRegex(options)
        settings = ",".join('%s="%s"' % pair for pair in sorted(job["options"].items()))
        if not program.readRegex(job["filter"] + ("[%s]" % settings if settings else ""), "fail"):
            return {"error": "refused"}
        rows = []
        log = FileContainer(path, "UTF-8", doOpen=True)
        log.waitForLineEnd = False
        for number, line in enumerate(log, 1):
            line = line.rstrip("\r\n")
            if line.startswith("#") or not line:
                continue
            _, matches, ignored = program.testRegex(line)
            if matches and not ignored:
                for match in matches:
                    rows.append([number, str(match[1]), match[3].get("user") or None, match[2]])
        found.append(rows)
    return {"found": found}


for text in sys.stdin:
    try:
        answer = ask(json.loads(text))
    except Exception as error:  # what the program itself ends with
        answer = {"error": repr(error)}
    print(json.dumps(answer), flush=True)
