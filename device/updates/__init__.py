"""Signed bundles, updated in the background and left again when they misbehave.

What The Update Framework (https://theupdateframework.io) promises, with two roles: a manifest, signed once for each bundle by
keys that stay offline, and a short-lived release, signed every few days, that says which bundle is current.

| attack | what stops it |
|---|---|
| arbitrary install | nothing is opened before keys that came with the app have signed its manifest, which pins every file |
| rollback | the last release is kept on disk: serials of releases and bundles never go back |
| freeze | a release expires, by the device's clock or by the newest release seen, whichever is later |
| mix-and-match | a release pins one manifest, a manifest pins all files; one serial is one manifest for ever |
| endless data, slow retrieval | sizes are known before a download begins; every call has a deadline |
| wrong software | `probe` tries the models on this device, a `Trial` watches them in use; the previous bundle is kept |

`Updates` is the whole of it; an app's feed asks it for a ranker between two pages. Errors are in
`pocketrank.device.bundle.files`.
"""

from pocketrank.device.updates.probe import ProbeConfig, probe
from pocketrank.device.updates.store import BundleStore, StoreState
from pocketrank.device.updates.trial import Trial, TrialConfig, Verdict
from pocketrank.device.updates.updates import Current, Outcome, UpdateConfig, Updates

__all__ = [
    "BundleStore",
    "Current",
    "Outcome",
    "ProbeConfig",
    "StoreState",
    "Trial",
    "TrialConfig",
    "UpdateConfig",
    "Updates",
    "Verdict",
    "probe",
]
