// SAMPLE, not run on a device. Pure Kotlin, held to the committed vectors on a JVM: see README.md.
package pocketrank.sample

import java.io.File
import java.io.IOException
import java.nio.ByteBuffer

/**
 * Events that wait for their upload, in order of arrival, each id once. A full outbox drops the oldest. They are written to
 * [file] on arrival and survive the app's end: an event must be kept until the cloud has acknowledged it. Where the disk fails
 * they stay in memory: feedback must never stop the feed.
 */
class Outbox(private val file: File?, private val waitingMax: Int = WAITING_MAX) {
    private val waiting = LinkedHashMap<String, ByteArray>()
    private val known = LinkedHashSet<String>() // ids of events, sent or not, to recognize repeats

    init {
        // One event after the other, each behind its size. An event that was cut off by the end of the process is skipped.
        val bytes = try { file?.takeIf { it.exists() }?.readBytes() } catch (e: IOException) { null } ?: ByteArray(0)
        var at = 0
        while (at + 4 <= bytes.size) {
            val size = ByteBuffer.wrap(bytes, at, 4).int
            if (size !in 0..bytes.size - at - 4) break
            val event = bytes.copyOfRange(at + 4, at + 4 + size)
            val id = try { MessagePack.decode(event)["event_id"].text() } catch (e: ContractException) { break }
            remember(id)
            waiting[id] = event
            at += 4 + size
        }
        trim()
        if (at < bytes.size) rewrite() // the next event must not follow half an event
    }

    /** False when the id of this event is known, sent or not. */
    fun add(event: FeedbackEvent): Boolean {
        if (!remember(event.eventId)) return false
        val bytes = event.encode()
        waiting[event.eventId] = bytes
        if (!trim()) try { file?.appendBytes(framed(bytes)) } catch (e: IOException) { rewrite() }
        return true
    }

    /**
     * The oldest waiting events in their form on the wire, by id: up to [most], in as many bytes as a call carries. They wait
     * until they are [acknowledged].
     */
    fun waiting(most: Int = EVENTS_MAX): Map<String, ByteArray> {
        val some = LinkedHashMap<String, ByteArray>()
        var size = 0
        for ((id, bytes) in waiting.entries.take(most)) {
            size += bytes.size
            if (size > BYTES_MAX && some.isNotEmpty()) break
            some[id] = bytes
        }
        return some
    }

    /** Remove these events: the cloud has answered their request or batch. */
    fun acknowledged(eventIds: Collection<String>) {
        waiting.keys.removeAll(eventIds.toSet())
        rewrite()
    }

    /** The body of `POST /v1/feedback` with these [events], for the time when the app goes to the background and asks for no page. */
    fun batch(events: Map<String, ByteArray>): ByteArray = MessagePack.encode(
        linkedMapOf("version" to Node.WIRE_VERSION, "events" to events.values.map { MessagePack.Raw(it) }),
    )

    private fun remember(id: String) = known.add(id).also { if (known.size > IDS_MAX) known.remove(known.first()) }

    private fun trim(): Boolean {
        val over = waiting.size - waitingMax
        if (over <= 0) return false
        // Drop more than necessary, so that a full outbox does not rewrite its file at every swipe.
        waiting.keys.take(over + waitingMax / 100).forEach(waiting::remove)
        rewrite()
        return true
    }

    /** Write the file atomically: under a temporary name, then renamed. */
    private fun rewrite() {
        if (file == null) return
        val beside = File(file.path + ".new")
        try {
            beside.outputStream().use { out -> waiting.values.forEach { out.write(framed(it)) } }
            if (!beside.renameTo(file)) throw IOException("cannot rename $beside")
        } catch (e: IOException) {
            beside.delete()
        }
    }

    private fun framed(bytes: ByteArray) = ByteBuffer.allocate(4 + bytes.size).putInt(bytes.size).put(bytes).array()

    companion object {
        const val EVENTS_MAX = 1000 // in a call
        private const val BYTES_MAX = 256 shl 10 // in a call; the cloud takes 1 MiB
        private const val WAITING_MAX = 10_000 // an hour of swiping has about a thousand
        private const val IDS_MAX = 4096
    }
}
