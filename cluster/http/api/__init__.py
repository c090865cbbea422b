"""The API, /-/api/v1: what the command line lists and does, as JSON. docs/api.md is for those who use it.

app.py            puts it together: routes, errors as JSON, the OpenAPI document
guard.py          around it: how large and slow a request may be, and what no answer lacks
asking.py         who asks, and what they may
models.py         bodies and answers
cluster.py        the status of it all, who I am
devices.py        devices
repositories.py   repositories, their logs, what is done to them
people.py         users, groups, keys, tokens
rights.py         grants, rules, placement, access explained
"""
