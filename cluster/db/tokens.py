"""Tokens, which prove a user over HTTP, and the browsers that were shown one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cluster.db.connections import Connections
from cluster.db.rows import Row
from cluster.db.who import COUNTS_AS_PROOF, STILL_PROVEN, TOKEN, key_gone, no_user, proof_of
from cluster.errors import NotFound, Refused
from cluster.model import Actor, ActorKind

MAX_TOKENS = 100
"""Tokens that users may make for themselves. An administrator may make more for them."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is listed: all but its secret. Times as in the table."""

    id: int
    user: str
    comment: str
    read_only: bool
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    last_used_from: str | None


class Tokens(Connections):
    """Tokens, and the browsers that were shown one. A digest is the SHA-256 of what is kept secret."""

    def add_token(
        self,
        user: str,
        digest: bytes,
        *,
        read_only: bool,
        expires_at: datetime | None = None,
        comment: str = "",
    ) -> int:
        """Its number. NotFound: no such user."""
        rows = self._write(
            """insert into token (digest, actor_id, comment, read_only, expires_at)
               select %(digest)s, id, %(comment)s, %(read_only)s, %(expires_at)s
                 from actor where name = %(user)s returning id""",
            {
                "digest": digest,
                "comment": comment,
                "read_only": read_only,
                "expires_at": expires_at,
                "user": user,
            },
        )
        if not rows:
            raise no_user(user)
        return int(rows[0]["id"])

    def add_own_token(
        self,
        actor: Actor,
        digest: bytes,
        *,
        read_only: bool,
        expires_at: datetime | None = None,
        comment: str = "",
    ) -> tuple[int, datetime | None]:
        """Its number, and until when it counts: never longer than the token that proved `actor`, or an expiry would
        bind nobody.

        Refused: what proved `actor` does so no more, or they have MAX_TOKENS.
        """
        with self._transaction() as connection:
            connection.execute(
                "select from actor where name = %(user)s for no key update", {"user": actor.name}
            )
            proof = connection.execute("select " + STILL_PROVEN + " as proven", proof_of(actor)).fetchone()
            if proof is None or not proof["proven"]:
                raise key_gone()
            row = connection.execute(
                """insert into token (digest, actor_id, comment, read_only, expires_at)
                   select %(digest)s, a.id, %(comment)s, %(read_only)s,
                          least(%(expires_at)s::timestamptz, (select expires_at from token where id = %(token)s))
                     from actor a where a.name = %(user)s
                      and (select count(*) from token where actor_id = a.id) < %(most)s returning id, expires_at""",
                {
                    "digest": digest,
                    "comment": comment,
                    "read_only": read_only,
                    "expires_at": expires_at,
                    "token": proof_of(actor)["token"],
                    "user": actor.name,
                    "most": MAX_TOKENS,
                },
            ).fetchone()
            if row is None:
                raise Refused(
                    f"you have {MAX_TOKENS} tokens already", hint="remove one that you do not use first"
                )
            return int(row["id"]), row["expires_at"]

    def tokens(self, user: str | None = None) -> list[Token]:
        """Of one user, or of all."""
        return [
            Token(**row)
            for row in self._read(
                """select t.id, a.name as user, t.comment, t.read_only, t.created_at, t.expires_at, t.last_used_at,
                          t.last_used_from
                     from token t join actor a on a.id = t.actor_id
                    where %(user)s::text is null or a.name = %(user)s order by a.name, t.id""",
                {"user": user},
            )
        ]

    def remove_token(self, number: int, *, of: str | None = None) -> None:
        """From now on it proves nobody. of: remove it only if it is this user's. NotFound."""
        if not self._taken(
            """delete from token t using actor a where t.id = %(id)s and a.id = t.actor_id
                  and (%(of)s::text is null or a.name = %(of)s) returning 1""",
            {"id": number, "of": of},
        ):
            raise NotFound(f"there is no token {number}", hint="`git-cluster token list` shows them")

    def whose_token(self, digest: bytes, address: str) -> Actor | None:
        """Whom a token proves, or None; that it was used is noted, once a minute."""
        rows = self._read(
            """select t.id, t.read_only, a.name,
                      t.last_used_at is null or t.last_used_at < now() - interval '1 minute'
                          or t.last_used_from is distinct from %(address)s as stale
                 from token t join actor a on a.id = t.actor_id where t.digest = %(digest)s and """
            + COUNTS_AS_PROOF,
            {"digest": digest, "address": address},
        )
        if not rows:
            return None
        if rows[0]["stale"]:
            self._write(
                "update token set last_used_at = now(), last_used_from = %(address)s where id = %(id)s",
                {"id": rows[0]["id"], "address": address},
            )
        return proven_by_token(rows[0])

    # Browsers

    def begin_web_session(self, digest: bytes, actor: Actor, *, seconds: float) -> None:
        """For the token that proved `actor`, and at the longest as long as it counts. Forgets those that are over."""
        self._write(
            """with over as (delete from web_session where expires_at < now())
               insert into web_session (digest, token_id, expires_at)
               select %(digest)s, id, least(expires_at, now() + make_interval(secs => %(seconds)s))
                 from token where id = %(token)s""",
            {"digest": digest, "token": int(actor.fingerprint.removeprefix(TOKEN)), "seconds": seconds},
        )

    def whose_web_session(self, digest: bytes) -> Actor | None:
        rows = self._read(
            """select t.id, t.read_only, a.name
                 from web_session w join token t on t.id = w.token_id join actor a on a.id = t.actor_id
                where w.digest = %(digest)s and w.expires_at > now() and """
            + COUNTS_AS_PROOF,
            {"digest": digest},
        )
        return proven_by_token(rows[0]) if rows else None

    def end_web_session(self, digest: bytes) -> None:
        """One that is not there is ended already."""
        self._write("delete from web_session where digest = %(digest)s", {"digest": digest})


def proven_by_token(row: Row) -> Actor:
    """The actor of a token's id and read_only, and its user's name."""
    return Actor(ActorKind.USER, str(row["name"]), f"{TOKEN}{row['id']}", read_only=bool(row["read_only"]))
