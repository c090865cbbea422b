"""The API, /-/api/v1: what the command line lists and does, as JSON. docs/api.md is for those who use it.

app.py            puts it together: routes, errors as JSON, the OpenAPI document
guard.py          around it: no answer is kept
asking.py         who asks, and what they may
models.py         bodies and answers
overview.py       the status of it all, who I am
devices.py        devices
repositories.py   repositories, their logs
deeds.py          what is done to a repository: sync, verify, freeze, thaw
people.py         users, groups, keys, tokens
rights.py         grants, rules, placement, access explained
"""
