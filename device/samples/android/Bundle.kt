// SAMPLE, not run on a device. Pure Kotlin, held to the committed vectors on a JVM: see README.md.
package pocketrank.sample

import java.io.File
import java.io.IOException
import java.nio.file.Files
import java.security.MessageDigest

/** A bundle that must not be used. The app keeps the one it has, or cloud order. */
class BundleException(message: String, cause: Throwable? = null) : Exception(message, cause)

/**
 * A folder with a manifest, a feature spec and models, whose listed files were all checked against the manifest. Download into
 * a new folder, open it, and only then remember the new folder's name (SharedPreferences, `commit`): a bundle is
 * installed completely or not at all. A change of bundle needs a new session, since a model's state must not reach another model.
 *
 * The manifest's signature must be verified before this; see "What is left out" in README.md.
 */
class Bundle private constructor(val folder: File, val splitVersion: String, val spec: FeatureSpec, private val models: List<Node>) {
    /** The file of a form's model, for all users; null when there is none. LiteRT has all stages of it in one file. */
    fun model(form: Form, format: String = "tflite", precision: String = "fp32"): File? = models.firstOrNull {
        it["form"].text() == form.wire && it["format"].text() == format && it["precision"].text() == precision &&
            it["group"].value == null
    }?.let { File(folder, it["path"].text()) }

    companion object {
        private const val TEXT_MAX = 4 shl 20 // bytes of a manifest or spec; real ones have thousands
        private const val PATH_MAX = 1024

        /** Read and check the whole bundle, which takes some milliseconds, on a background thread. Throws [BundleException]. */
        fun open(folder: File, nowMs: Long = System.currentTimeMillis()): Bundle = try {
            read(folder, nowMs)
        } catch (e: IOException) {
            throw BundleException("$folder cannot be read", e)
        } catch (e: ContractException) {
            throw BundleException("$folder is no bundle", e)
        }

        private fun read(folder: File, nowMs: Long): Bundle {
            val manifest = json(File(folder, "manifest.json"))
            val expires = manifest["expires_ms"].optional { long() }
            if (expires != null && nowMs >= expires) throw BundleException("$folder has expired")
            val listed = HashMap<String, Long>()
            for (entry in manifest["files"].list()) {
                val path = entry["path"].text()
                if (path in listed || path == "manifest.json") throw BundleException("$path is listed twice")
                check(folder, path, entry["bytes"].long(), entry["sha256"].text().lowercase())
                listed[path] = entry["bytes"].long()
            }
            val spec = manifest["spec"].text()
            if (spec !in listed) throw BundleException("the spec $spec is not listed")
            for (model in manifest["models"].list()) {
                val path = model["path"].text()
                val bytes = listed.filterKeys { it == path || it.startsWith("$path/") }.values.sum()
                if (bytes == 0L || bytes != model["bytes"].long()) throw BundleException("the model $path is not what is listed")
            }
            return Bundle(folder, manifest["split_version"].text(), FeatureSpec.read(json(File(folder, spec))), manifest["models"].list())
        }

        private fun json(file: File): Node {
            if (file.length() > TEXT_MAX) throw BundleException("$file has more than $TEXT_MAX bytes")
            return Json.decode(file.readBytes()).also { it.checkVersion() }
        }

        private fun check(folder: File, path: String, bytes: Long, sha256: String) {
            val parts = path.split("/")
            if (path.length > PATH_MAX || parts.any { it.isEmpty() || it == "." || it == ".." } || path.any { it in "\\:\u0000" }) {
                throw BundleException("the path $path leaves the folder")
            }
            val file = parts.fold(folder) { at, part ->
                File(at, part).also { if (Files.isSymbolicLink(it.toPath())) throw BundleException("$it is a symbolic link") }
            }
            if (!file.isFile || file.length() != bytes) throw BundleException("$file has not $bytes bytes")
            val digest = MessageDigest.getInstance("SHA-256")
            file.inputStream().use { input ->
                val part = ByteArray(1 shl 16)
                while (true) {
                    val size = input.read(part)
                    if (size < 0) break
                    digest.update(part, 0, size)
                }
            }
            val found = digest.digest().joinToString("") { "%02x".format(it) }
            if (found != sha256) throw BundleException("$file is not what the manifest says")
        }
    }
}
