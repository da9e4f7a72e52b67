"""What the API and the job runner are built on, made once at start-up."""

from __future__ import annotations

from dataclasses import dataclass, field

from afdc_server.accounts.limits import Budgets
from afdc_server.accounts.uses import KeyUses
from afdc_server.artifacts import ArtifactStore
from afdc_server.db.database import Database
from afdc_server.jobs.hub import EventHub
from afdc_server.jobs.runner import Runner
from afdc_server.jobs.shared import SharedEngine
from afdc_server.service.instance import Instance
from afdc_server.service.rates import RateLimit
from afdc_server.service.settings import ServerSettings
from afdc_server.service.traffic import Traffic


@dataclass(frozen=True)
class Services:
    """`secret`: of the API keys. `instance`: the hold on the data folder."""

    settings: ServerSettings
    db: Database
    secret: bytes = field(repr=False)
    artifacts: ArtifactStore
    rates: RateLimit
    budgets: Budgets
    uses: KeyUses
    traffic: Traffic
    hub: EventHub
    engine: SharedEngine
    runner: Runner
    instance: Instance
