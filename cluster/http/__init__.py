"""The HTTP endpoint: Git, the status page, the API, metrics and health. One module a thing; app.py puts them together.

server.py      uvicorn in a thread of the daemon, hardened
app.py         which path is whose
site.py        what all of them work with
who.py         whom a request is from
git.py         Git's three paths below a repository's name
git_client.py  a Client (cluster/client.py) that speaks HTTP
answers.py     errors as responses
health.py      /-/health, for load balancers
metrics.py     /-/metrics, for Prometheus
"""
