"""Who may do what: one table, with the least role and the scope that each permission needs."""

from enum import Enum

from app.identity.models import Role


class Permission(Enum):
    """The least role that has it, the scope that gives it to an API key (None: no key has it), and what it allows."""

    def __init__(self, role: Role, scope: str | None, allows: str) -> None:
        self.role = role
        self.scope = scope
        self.allows = allows

    READ_CHAT = (
        Role.VIEWER,
        "chat:read",
        "See the agents, one's own conversations and those that others share, with their messages, runs and events.",
    )
    WRITE_CHAT = Role.MEMBER, "chat:write", "Start and stop runs; rename, share and delete one's own conversations."
    READ_ATTACHMENTS = Role.VIEWER, "attachments:read", "See one's own images and those of shared conversations."
    WRITE_ATTACHMENTS = Role.MEMBER, "attachments:write", "Upload images; delete one's own."
    READ_ACCOUNT = Role.VIEWER, "account:read", "See oneself and the tenant."
    READ_MEMBERS = Role.VIEWER, "members:read", "See the tenant's members."
    LEAVE = Role.VIEWER, None, "Leave the tenant."
    MANAGE_OWN_KEYS = Role.MEMBER, None, "Create, list and revoke one's own API keys."
    EXPORT_OWN = Role.MEMBER, None, "Export one's own conversations and images, and fetch the archive."
    MANAGE_MEMBERS = (
        Role.ADMIN,
        None,
        "Invite; change and remove members, and give roles, below owner; see and revoke invitations.",
    )
    MANAGE_KEYS = Role.ADMIN, None, "List and revoke every API key of the tenant."
    MANAGE_TENANT = Role.ADMIN, None, "Rename the tenant and set how long its conversations are kept."
    READ_LIMITS = Role.VIEWER, "usage:read", "See the plan's limits, and how much of them is used."
    READ_USAGE = Role.MEMBER, "usage:read", "See what one's own runs have used, and what that cost."
    READ_TENANT_USAGE = Role.ADMIN, "usage:read", "See what everyone's runs have used."
    READ_AUDIT = Role.ADMIN, "audit:read", "Read the tenant's audit log."
    ERASE_TENANT = Role.OWNER, None, "Erase the tenant; remove a member with all that they made in it."
    MANAGE_OWNERS = Role.OWNER, None, "Make owners; change or remove one."
    EXPORT_TENANT = Role.OWNER, None, "Export everything of the tenant, and fetch the archive."


SCOPES = tuple(sorted({permission.scope for permission in Permission if permission.scope is not None}))
