"""Signed bundles: updated in the background, and rolled back when they misbehave.

The design follows The Update Framework (https://theupdateframework.io), with two roles: a manifest, signed once for each bundle
by keys that stay offline, and a short-lived release, signed every few days, that names the current bundle.

| attack | defence |
|---|---|
| arbitrary install | the app's built-in keys verify the manifest, which pins every file, before anything is opened |
| rollback | the last release is kept on disk: serials of releases and bundles never decrease |
| freeze | a release expires, by the device's clock or by the newest release seen, whichever is later |
| mix-and-match | a release pins one manifest, a manifest pins all files; one serial is one manifest for ever |
| endless data, slow retrieval | sizes are known before a download starts; every call has a deadline |
| wrong software | `probe` tries the models on this device, a `Trial` watches them in use; the previous bundle stays |

`Updates` combines all of this; an app's feed asks it for a ranker between two pages. Errors are in
`pocketrank.device.bundle.files`. Modules of this folder decide which bundle a device runs; how a bundle is read and verified is
in `pocketrank.device.bundle`, how it is fetched in `pocketrank.device.network`.
"""

from pocketrank.device.updates.probe import *
from pocketrank.device.updates.store import *
from pocketrank.device.updates.trial import *
from pocketrank.device.updates.updates import *
