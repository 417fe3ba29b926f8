"""Signed bundles: updated in the background, and rolled back when they misbehave.

The design follows The Update Framework (https://theupdateframework.io), with two roles: a manifest, signed once for each bundle
by keys that stay offline, and a short-lived release, signed every few days, that names the current bundle.

| attack | defence |
|---|---|
| arbitrary install | the app's built-in keys verify the manifest, which pins every file, before anything is opened |
| rollback | the last release is kept on disk: serials of releases and bundles never decrease |
| a damaged state | the last release, with its kill switch and serials, is kept in a second copy with a checksum |
| two updaters of one folder | a lock: the second process gets an error, a second store in one process replaces the first |
| a model that ends the process | starts that the app did not end are counted; after a few in a row the previous one is used |
| a file that is swapped after its check | the bytes that a runtime opens are checked, external data of ONNX included |
| a probe that never ends | it is given up on, its bundle is rejected, and the next release is followed |
| freeze | a release expires, by the device's clock or by the last release's date, whichever is later |
| a wrong date | a release dated over two days ahead of the device's clock is refused, and no later one is locked out |
| a kill with a wrong date | it is followed, expired or ahead: its serial must be above the last one, and it only stops models |
| another feed's bundle | bundles and releases name their app and channel, and a device takes only its own |
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
