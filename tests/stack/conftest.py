"""Services as tests/services has them, over the real servers of stack/."""

from tests.services.conftest import serve, settings, stores

__all__ = ["serve", "settings", "stores"]
