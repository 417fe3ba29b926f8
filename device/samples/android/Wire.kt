// SAMPLE, not run on a device. Pure Kotlin, held to the committed vectors on a JVM: see README.md.
package pocketrank.sample

import java.io.ByteArrayOutputStream
import java.io.DataOutputStream
import java.nio.BufferUnderflowException
import java.nio.ByteBuffer

/** Something crossed the wire that the contract does not allow; [path] says where, such as `$.candidates.vector`. */
class ContractException(val path: String, expected: String, got: String) : Exception("Expected $expected, got $got - at `$path`")

/**
 * A decoded value and its path. MessagePack and JSON both become maps, lists, strings, `Long`, `Double`, booleans, byte
 * arrays and null; the functions below read them as the contract's types. Fields that are not read are ignored.
 */
class Node(val value: Any?, val path: String = "$") {
    operator fun get(name: String) = Node(map()[name], "$path.$name")

    fun text() = value as? String ?: refuse("`str`")
    fun bool() = value as? Boolean ?: refuse("`bool`")
    fun bytes() = value as? ByteArray ?: refuse("`bytes`")
    fun long() = value as? Long ?: refuse("`int`")
    fun int(): Int = long().let { if (it in Int.MIN_VALUE..Int.MAX_VALUE) it.toInt() else refuse("an integer of 32 bits") }
    fun double() = (value as? Number)?.toDouble() ?: refuse("`float`")
    fun list() = (value as? List<*> ?: refuse("`array`")).mapIndexed { i, entry -> Node(entry, "$path[$i]") }
    fun map(): Map<*, *> = value as? Map<*, *> ?: refuse("`object`")

    /** The value as [read] returns it, or null when there is none. */
    fun <T> optional(read: Node.() -> T): T? = if (value == null) null else read()

    /** Structs of another version are refused, even when the rest would decode. */
    fun checkVersion() {
        val version = this["version"].optional { long() } ?: WIRE_VERSION
        if (version != WIRE_VERSION) throw ContractException("$path.version", "version $WIRE_VERSION", "version $version")
    }

    fun refuse(expected: String): Nothing = throw ContractException(path, expected, kind(value))

    private fun kind(value: Any?) = when (value) {
        null -> "nothing"
        is Map<*, *> -> "`object`"
        is List<*> -> "`array`"
        is ByteArray -> "`bytes`"
        else -> value.toString().take(GOT_MAX)
    }

    companion object {
        const val WIRE_VERSION = 1L
        private const val GOT_MAX = 60
    }
}

/** The part of MessagePack that the contract uses: no extension types, text as keys, integers of 64 signed bits. */
object MessagePack {
    /** Bytes that are already MessagePack, written unchanged. */
    class Raw(val bytes: ByteArray)

    private const val DEPTH_MAX = 32 // a page has 4 levels; a hostile one must not end in a StackOverflowError

    fun decode(bytes: ByteArray): Node {
        val input = ByteBuffer.wrap(bytes) // big-endian, as MessagePack is
        try {
            val value = read(input, 0)
            if (input.hasRemaining()) throw malformed("${input.remaining()} bytes behind the end")
            return Node(value)
        } catch (e: BufferUnderflowException) {
            throw malformed("an early end")
        } catch (e: CharacterCodingException) {
            throw malformed("text that is not UTF-8")
        }
    }

    private fun malformed(got: String) = ContractException("$", "MessagePack", got)

    private fun read(input: ByteBuffer, depth: Int): Any? {
        if (depth > DEPTH_MAX) throw malformed("more than $DEPTH_MAX levels")
        val code = input.get().toInt() and 0xff
        return when {
            code <= 0x7f -> code.toLong()
            code <= 0x8f -> readMap(input, code and 0x0f, depth)
            code <= 0x9f -> readList(input, code and 0x0f, depth)
            code <= 0xbf -> readText(input, code and 0x1f)
            code >= 0xe0 -> (code - 0x100).toLong()
            else -> when (code) {
                0xc0 -> null
                0xc2 -> false
                0xc3 -> true
                0xc4 -> readBytes(input, input.get().toInt() and 0xff)
                0xc5 -> readBytes(input, input.short.toInt() and 0xffff)
                0xc6 -> readBytes(input, input.int)
                0xca -> input.float.toDouble()
                0xcb -> input.double
                0xcc -> input.get().toLong() and 0xff
                0xcd -> input.short.toLong() and 0xffff
                0xce -> input.int.toLong() and 0xffffffffL
                0xcf -> input.long.also { if (it < 0) throw malformed("an integer beyond 64 signed bits") }
                0xd0 -> input.get().toLong()
                0xd1 -> input.short.toLong()
                0xd2 -> input.int.toLong()
                0xd3 -> input.long
                0xd9 -> readText(input, input.get().toInt() and 0xff)
                0xda -> readText(input, input.short.toInt() and 0xffff)
                0xdb -> readText(input, input.int)
                0xdc -> readList(input, input.short.toInt() and 0xffff, depth)
                0xdd -> readList(input, input.int, depth)
                0xde -> readMap(input, input.short.toInt() and 0xffff, depth)
                0xdf -> readMap(input, input.int, depth)
                else -> throw malformed("the code $code")
            }
        }
    }

    /** A size beyond the remaining bytes is refused before anything is allocated for it. */
    private fun claimed(input: ByteBuffer, count: Int): Int =
        if (count in 0..input.remaining()) count else throw malformed("a claim of $count with ${input.remaining()} bytes left")

    private fun readBytes(input: ByteBuffer, size: Int) = ByteArray(claimed(input, size)).also { input.get(it) }

    private fun readText(input: ByteBuffer, size: Int) = readBytes(input, size).decodeToString(throwOnInvalidSequence = true)

    private fun readList(input: ByteBuffer, size: Int, depth: Int) = List(claimed(input, size)) { read(input, depth + 1) }

    private fun readMap(input: ByteBuffer, size: Int, depth: Int): Map<String, Any?> {
        val map = LinkedHashMap<String, Any?>()
        repeat(claimed(input, size)) {
            val key = read(input, depth + 1) as? String ?: throw malformed("a key that is no text")
            map[key] = read(input, depth + 1)
        }
        return map
    }

    fun encode(value: Any?): ByteArray {
        val bytes = ByteArrayOutputStream()
        write(DataOutputStream(bytes), value)
        return bytes.toByteArray()
    }

    private fun write(out: DataOutputStream, value: Any?) {
        when (value) {
            null -> out.writeByte(0xc0)
            is Boolean -> out.writeByte(if (value) 0xc3 else 0xc2)
            is Int -> writeLong(out, value.toLong())
            is Long -> writeLong(out, value)
            is Double -> { out.writeByte(0xcb); out.writeDouble(value) }
            is String -> value.encodeToByteArray().let { writeHead(out, it.size, 0xa0, 31, 0xd9); out.write(it) }
            is List<*> -> { writeHead(out, value.size, 0x90, 15, null); value.forEach { write(out, it) } }
            is Map<*, *> -> {
                writeHead(out, value.size, 0x80, 15, null)
                value.forEach { (key, entry) -> write(out, key as String); write(out, entry) }
            }
            is Raw -> out.write(value.bytes)
            else -> throw IllegalArgumentException("no MessagePack for ${value::class}")
        }
    }

    /** The shortest head for a size: in the code itself up to [short], else of one byte (text only), two or four. */
    private fun writeHead(out: DataOutputStream, size: Int, fixed: Int, short: Int, oneByte: Int?) {
        val wide = when (fixed) { 0xa0 -> 0xda; 0x90 -> 0xdc; else -> 0xde }
        when {
            size <= short -> out.writeByte(fixed or size)
            oneByte != null && size <= 0xff -> { out.writeByte(oneByte); out.writeByte(size) }
            size <= 0xffff -> { out.writeByte(wide); out.writeShort(size) }
            else -> { out.writeByte(wide + 1); out.writeInt(size) }
        }
    }

    private fun writeLong(out: DataOutputStream, value: Long) {
        when (value) {
            in -0x20..0x7f -> out.writeByte(value.toInt())
            in 0..0xff -> { out.writeByte(0xcc); out.writeByte(value.toInt()) }
            in 0..0xffff -> { out.writeByte(0xcd); out.writeShort(value.toInt()) }
            in 0..0xffffffffL -> { out.writeByte(0xce); out.writeInt(value.toInt()) }
            in 0..Long.MAX_VALUE -> { out.writeByte(0xcf); out.writeLong(value) }
            in Byte.MIN_VALUE..0 -> { out.writeByte(0xd0); out.writeByte(value.toInt()) }
            in Short.MIN_VALUE..0 -> { out.writeByte(0xd1); out.writeShort(value.toInt()) }
            in Int.MIN_VALUE..0 -> { out.writeByte(0xd2); out.writeInt(value.toInt()) }
            else -> { out.writeByte(0xd3); out.writeLong(value) }
        }
    }
}
