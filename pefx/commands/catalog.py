"""The commands of `pefx catalog`."""

from typing import Annotated

from tyro.conf import subcommand

from pefx.commands.changing import Alias, Branch, Gc, Retire, Rollback, Tag
from pefx.commands.looking import Audit, Diff, Log, Ls, Show, Stats
from pefx.commands.moving import Export, ExportPeft, Import, ImportPeft, Merge
from pefx.commands.pages import Web

Action = (
    Annotated[Ls, subcommand("ls")]
    | Annotated[Show, subcommand("show")]
    | Annotated[Log, subcommand("log")]
    | Annotated[Diff, subcommand("diff")]
    | Annotated[Tag, subcommand("tag")]
    | Annotated[Alias, subcommand("alias")]
    | Annotated[Rollback, subcommand("rollback")]
    | Annotated[Branch, subcommand("branch")]
    | Annotated[Retire, subcommand("retire")]
    | Annotated[Gc, subcommand("gc")]
    | Annotated[Audit, subcommand("audit")]
    | Annotated[Stats, subcommand("stats")]
    | Annotated[Export, subcommand("export")]
    | Annotated[Import, subcommand("import")]
    | Annotated[ImportPeft, subcommand("import-peft")]
    | Annotated[ExportPeft, subcommand("export-peft")]
    | Annotated[Merge, subcommand("merge")]
    | Annotated[Web, subcommand("web")]
)
